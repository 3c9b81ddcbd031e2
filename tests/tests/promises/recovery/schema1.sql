-- A store as the version before roles and the audit log left it (schema 1): written by that version, dumped by sqlite3.
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE documents (
    kind TEXT NOT NULL,
    namespace TEXT NOT NULL,      -- '' for kinds without a namespace
    name TEXT NOT NULL,
    body TEXT NOT NULL,           -- canonical JSON
    version TEXT NOT NULL,        -- hash of body
    epoch INTEGER NOT NULL,       -- the epoch that last changed it
    PRIMARY KEY (kind, namespace, name)
) STRICT, WITHOUT ROWID;
INSERT INTO documents VALUES('AuthorizationPolicy','shop','frontend-calls-orders','{"apiVersion":"equerry.dev/v1","kind":"AuthorizationPolicy","metadata":{"name":"frontend-calls-orders","namespace":"shop"},"spec":{"action":"ALLOW","rules":[{"from":[{"source":{"principals":["equerry.local/ns/shop/sa/frontend"]}}]}],"targetRefs":[{"kind":"Service","name":"orders"}]}}','68e9e6e17c0b124bff41283e2b493b06',1);
INSERT INTO documents VALUES('HTTPRoute','shop','orders','{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"orders","namespace":"shop"},"spec":{"parentRefs":[{"group":"","kind":"Service","name":"orders"}],"rules":[{"backendRefs":[{"name":"orders","port":80}],"matches":[{"path":{"type":"PathPrefix","value":"/v1"}}],"timeouts":{"request":"3s"}}]}}','121ce0cec8f306e3a9b72eeaf05e57e5',2);
INSERT INTO documents VALUES('Mesh','','default','{"apiVersion":"equerry.dev/v1","kind":"Mesh","metadata":{"name":"default"},"spec":{"authorization":{"default":"DENY"}}}','d421153a12a90da3562954c5d758611d',1);
INSERT INTO documents VALUES('Service','shop','orders','{"apiVersion":"v1","kind":"Service","metadata":{"annotations":{"equerry.dev/accounts":"orders"},"name":"orders","namespace":"shop"},"spec":{"ports":[{"port":80,"targetPort":8080}],"selector":{"app":"orders"}}}','ffc48a9ee2b928a4abb5beb8765eac97',1);
INSERT INTO documents VALUES('Tenant','','acme','{"apiVersion":"equerry.dev/v1","kind":"Tenant","metadata":{"name":"acme"},"spec":{"match":[{"claim":{"name":"tenant","value":"acme"}}],"quotas":[{"requests":1000,"services":["shop/orders"],"window":"1m"}]}}','6080c53a5e0691b3d32ceab09aa4b017',1);
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, at_unix_ms INTEGER NOT NULL) STRICT;
INSERT INTO epochs VALUES(1,1795262009359);
INSERT INTO epochs VALUES(2,1795262009459);
CREATE TABLE instances (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    body TEXT NOT NULL,           -- JSON of registry::Registration
    PRIMARY KEY (namespace, id)
) STRICT, WITHOUT ROWID;
INSERT INTO instances VALUES('shop','orders-1','{"id":"orders-1","account":"shop/orders","generation":1795262009844,"labels":{"app":"orders"},"inbound":"127.0.0.1:15906","ports":[8080],"healthy":true,"healthDetail":"","lease":{"secs":15,"nanos":0}}');
CREATE TABLE grants (
    quota TEXT NOT NULL,
    window INTEGER NOT NULL,      -- unix seconds / window seconds
    namespace TEXT NOT NULL,
    instance TEXT NOT NULL,
    granted INTEGER NOT NULL,     -- running total of this window
    PRIMARY KEY (quota, window, namespace, instance)
) STRICT, WITHOUT ROWID;
INSERT INTO grants VALUES('acme/0',29921033,'shop','orders-1',500);
INSERT INTO grants VALUES('acme/0',29921034,'shop','orders-1',500);
CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 BLOB NOT NULL,
    account TEXT NOT NULL,        -- namespace/account
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    used INTEGER                  -- when; NULL: not yet
) STRICT, WITHOUT ROWID;
INSERT INTO join_tokens VALUES('65a2a264a21111a3',X'1770b2fb423d01433d651575ea8421d86009a1b337af169d95d7df28a0d8c050','shop/frontend',1795262009674,4102444800000,NULL);
INSERT INTO join_tokens VALUES('d9664bd303b53650',X'68baff640af1d2bf827ea5ce09976c4a2b4b9c7a546a7780ce3f7c5e1cd8ad2a','shop/orders',1795262009547,1795866809547,1795262009842);
CREATE TABLE admin_tokens (
    id TEXT PRIMARY KEY,
    token_sha256 BLOB NOT NULL,
    name TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO admin_tokens VALUES('276b8843ef429cab',X'4c1a11c8e102d697216db3a77997779f5f249c67df777bcd3f33491f0f7c6ef1','first',1795262008455);
COMMIT;
PRAGMA user_version=1;
