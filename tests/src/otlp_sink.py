"""An OTLP/HTTP trace endpoint made of OpenTelemetry's own published messages: prints its port, then one JSON line for each span.

What cannot be read as ExportTraceServiceRequest is answered 400. With a certificate, its key and the value that x-key is to
have, it speaks HTTPS, and answers 401 to those without.
"""

import gzip
import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


# Sidecars send at the same moment; their lines must not mix.
one_at_a_time = threading.Lock()


CERTIFICATE, PRIVATE_KEY, KEY = sys.argv[1:] or (None, None, None)


def plain(attributes):
    return {one.key: one.value.string_value or one.value.int_value for one in attributes}


class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        known = KEY is None or self.headers["x-key"] == KEY
        request = ExportTraceServiceRequest()
        try:
            # Collectors that send on what they were sent pack it.
            packed = self.headers["content-encoding"] == "gzip"
            request.ParseFromString(gzip.decompress(body) if packed else body)
            right = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        except Exception:
            right = False
        for resource in request.resource_spans if known and right else ():
            about = plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    line = json.dumps({
                        "service": about.get("service.name"),
                        "namespace": about.get("service.namespace"),
                        "instance": about.get("service.instance.id"),
                        "scope": scope.scope.name,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "kind": span.SpanKind.Name(span.kind),
                        "name": span.name,
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        "status": span.status.code,
                        "attributes": plain(span.attributes),
                    })
                    with one_at_a_time:
                        sys.stdout.write(line + "\n")
                        sys.stdout.flush()
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(401 if not known else 200 if right else 400)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
if CERTIFICATE:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, PRIVATE_KEY)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_port, flush=True)
server.serve_forever()
