"""A WebSocket server and client that others wrote (websockets).

serve PORT: echoes what comes until it is killed; some messages ask for more. call SIDECAR URI: connects through a sidecar, plays
a conversation, and prints what came of each scene, one line for each.
"""

import socket
import sys

from websockets import Subprotocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

MIB = 1 << 20
LAST_CLOSE = ["none"]


def answer(connection):
    try:
        while True:
            message = connection.recv()
            if message == "close please":
                connection.close(4003, "as you asked")
            elif message == "last close":
                connection.send(LAST_CLOSE[0])
            elif message == "ping me":
                connection.ping(b"are you there").wait(10)
                connection.send("you are there")
            elif message == "in pieces":
                connection.send(iter(["one ", "two ", "three"]))
            else:
                connection.send(message)
    except ConnectionClosed as closed:
        if closed.rcvd is not None and closed.rcvd.code != 4003:
            LAST_CLOSE[0] = f"{closed.rcvd.code} {closed.rcvd.reason}"


def run_server(port):
    with serve(answer, "127.0.0.1", port, max_size=None, subprotocols=[Subprotocol("chat.v2")]) as server:
        server.serve_forever()


def opened(sidecar, uri):
    host, port = sidecar.rsplit(":", 1)
    there = socket.create_connection((host, int(port)))
    return connect(uri, sock=there, proxy=None, max_size=None, subprotocols=[Subprotocol("chat.v2")])


def run_client(sidecar, uri):
    try:
        with opened(sidecar, uri) as connection:
            converse(connection)
    except InvalidStatus as refused:
        print("refused", refused.response.status_code, refused.response.headers.get("proxy-status"))
        return
    with opened(sidecar, uri) as leaving:
        leaving.close(4242, "going home")
    with opened(sidecar, uri) as asking:
        asking.send("last close")
        print("told", asking.recv())


def converse(connection):
    extensions = connection.response.headers.get("sec-websocket-extensions", "").split(";")[0]
    print("opened", connection.subprotocol, extensions)
    connection.send("hello")
    print("text", connection.recv())
    connection.send(iter(["frag", "ment", "ed"]))
    print("fragmented", connection.recv())
    connection.send("in pieces")
    print("in pieces", [piece for piece in connection.recv_streaming() if piece])
    much = bytes(range(256)) * (MIB // 256)
    connection.send(much)
    print("mebibyte", connection.recv() == much)
    print("pong", connection.ping(b"x").wait(10))
    connection.send("ping me")
    print("pinged", connection.recv())
    connection.send("close please")
    try:
        connection.recv()
    except ConnectionClosed as closed:
        print("closed", closed.rcvd.code, closed.rcvd.reason)


def hold(sidecar, uri):
    """Opens a connection, says so, and waits for its end."""
    with opened(sidecar, uri) as connection:
        print("open", flush=True)
        try:
            connection.recv()
        except ConnectionClosed as closed:
            print("cut" if closed.rcvd is None else f"closed {closed.rcvd.code}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run_server(int(sys.argv[2]))
    elif sys.argv[1] == "hold":
        hold(*sys.argv[2:])
    else:
        run_client(*sys.argv[2:])
