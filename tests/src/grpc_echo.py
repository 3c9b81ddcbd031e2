"""A gRPC server and client that others wrote (grpcio), without generated stubs: messages are bytes.

serve PORT: answers /echo.Echo/Say with what was sent, /echo.Echo/Count with three messages, /echo.Echo/Fail with
RESOURCE_EXHAUSTED. call TARGET AUTHORITY: calls all three and prints what came back, one line each.
"""

import sys
from concurrent import futures

import grpc


def serve(port):
    def say(request, context):
        return b"echo " + request

    def count(request, context):
        for number in range(3):
            yield b"%d" % number

    def fail(request, context):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "nothing left")

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    server.add_insecure_port("127.0.0.1:%s" % port)
    server.start()
    # The test's end closes this pipe.
    sys.stdin.read()
    server.stop(0)


def call(target, authority):
    options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options) as channel:
        for name, one in [("Say", channel.unary_unary), ("Count", channel.unary_stream), ("Fail", channel.unary_unary)]:
            try:
                answer = one("/echo.Echo/" + name)(b"hello", timeout=10)
                answer = answer if isinstance(answer, bytes) else b" ".join(answer)
                print(name, "OK", answer.decode())
            except grpc.RpcError as error:
                print(name, error.code().name, error.details())


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(sys.argv[2], sys.argv[3])
