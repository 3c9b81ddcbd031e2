"""A gRPC server and client that others wrote (grpcio), without generated stubs: messages are bytes.

serve PORT NAME: answers the methods of /echo.Echo until its standard input ends. call TARGET AUTHORITY SCENE...: plays the
scenes named, and prints what came of each, one line for each.
"""

import queue
import sys
import threading
import time
from concurrent import futures

import grpc

LARGE = 8 << 20
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# What google.rpc.Status looks like on the wire: code 3, message "no such thing".
DETAILS = b"\x08\x03\x12\x0dno such thing"


class Server:
    def __init__(self, name):
        self.name = name.encode()
        self.begun = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)

    def say(self, request, context):
        return b"echo " + request

    def who(self, request, context):
        return self.name

    def count(self, request, context):
        for number in range(3):
            yield b"%d" % number

    def sum(self, requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def chat(self, requests, context):
        for request in requests:
            yield b"re " + request

    def ticks(self, request, context):
        while context.is_active():
            yield b"tick"
            time.sleep(0.1)

    def fail(self, request, context):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "nothing left")

    def late(self, request, context):
        yield b"so far so good"
        context.abort(grpc.StatusCode.DATA_LOSS, "it is gone: 100% \u2713")

    def details(self, request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", DETAILS), ("x-cause", "the other one")))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")

    def metadata(self, request, context):
        came = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-of-")]
        context.send_initial_metadata(tuple(("head-" + key, value) for key, value in came))
        context.set_trailing_metadata(tuple(("tail-" + key, value) for key, value in came))
        return b""

    def left(self, request, context):
        return b"%f" % context.time_remaining()

    def wait(self, request, context):
        """Says that it waits, then does so until nobody wants its answer any more."""
        over = threading.Event()
        context.add_callback(over.set)
        self.begun.release()
        over.wait(30)
        self.cancelled.release()
        return b""

    def seen(self, request, context):
        """Whether this many calls were seen to begin, or to be over before their answer."""
        what, count = request.split()
        what = self.begun if what == b"begun" else self.cancelled
        seen = all(what.acquire(timeout=5) for _ in range(int(count)))
        return b"yes" if seen else b"no"

    def flaky(self, request, context):
        """Works at one instance only."""
        if self.name == b"one":
            return b"served by one"
        context.abort(grpc.StatusCode.UNAVAILABLE, "not here")


SHAPES = {
    "Say": grpc.unary_unary_rpc_method_handler,
    "Who": grpc.unary_unary_rpc_method_handler,
    "Count": grpc.unary_stream_rpc_method_handler,
    "Sum": grpc.stream_unary_rpc_method_handler,
    "Chat": grpc.stream_stream_rpc_method_handler,
    "Ticks": grpc.unary_stream_rpc_method_handler,
    "Tocks": grpc.unary_stream_rpc_method_handler,
    "Pour": grpc.stream_unary_rpc_method_handler,
    "Fail": grpc.unary_unary_rpc_method_handler,
    "Late": grpc.unary_stream_rpc_method_handler,
    "Details": grpc.unary_unary_rpc_method_handler,
    "Metadata": grpc.unary_unary_rpc_method_handler,
    "Left": grpc.unary_unary_rpc_method_handler,
    "Wait": grpc.unary_unary_rpc_method_handler,
    "Patient": grpc.unary_unary_rpc_method_handler,
    "Seen": grpc.unary_unary_rpc_method_handler,
    "Flaky": grpc.unary_unary_rpc_method_handler,
    "Steady": grpc.unary_unary_rpc_method_handler,
    "Secret": grpc.unary_unary_rpc_method_handler,
}
# Methods that do the same under names that other rules are about.
ALIKE = {"Tocks": "ticks", "Pour": "sum", "Patient": "wait", "Steady": "flaky", "Secret": "say"}


def serve(port, name):
    behaviour = Server(name)
    handlers = {
        method: shape(getattr(behaviour, ALIKE.get(method, method.lower()))) for method, shape in SHAPES.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", handlers),))
    server.add_insecure_port("127.0.0.1:%s" % port)
    server.start()
    # The test's end closes this pipe.
    sys.stdin.read()
    server.stop(0)


def ended(error):
    return "%s %s" % (error.code().name, error.details())


def method(channel, shape, name):
    return getattr(channel, shape)("/echo.Echo/" + name)


def unary(channel, name, request=b"hello", **more):
    try:
        return "OK " + method(channel, "unary_unary", name)(request, timeout=10, **more).decode()
    except grpc.RpcError as error:
        return ended(error)


def server_stream(channel):
    return b" ".join(method(channel, "unary_stream", "Count")(b"", timeout=10)).decode()


def client_stream(channel):
    return method(channel, "stream_unary", "Sum")((b"x" * size for size in range(100)), timeout=10).decode()


def chat(channel):
    """Every word is said only after the answer to the one before has come."""
    words = queue.Queue()
    answers = method(channel, "stream_stream", "Chat")(iter(words.get, None), timeout=10)
    heard = []
    for word in [b"one", b"two", b"three"]:
        words.put(word)
        heard.append(next(answers).decode())
    words.put(None)
    return ", ".join(heard + [answer.decode() for answer in answers])


def listen(channel, name="Ticks"):
    """Says each message that comes, for a minute at most."""
    try:
        for word in method(channel, "unary_stream", name)(b"", timeout=60):
            print(word.decode(), flush=True)
        return "over"
    except grpc.RpcError as error:
        return ended(error)


def listen_on(channel):
    return listen(channel, "Tocks")


def pour(channel):
    """Sends without end, and is not answered meanwhile."""
    def drops():
        for _ in range(600):
            print("drop", flush=True)
            yield b"x"
            time.sleep(0.1)

    try:
        return method(channel, "stream_unary", "Pour")(drops(), timeout=60).decode()
    except grpc.RpcError as error:
        return ended(error)


def late(channel):
    heard = []
    try:
        for answer in method(channel, "unary_stream", "Late")(b"", timeout=10):
            heard.append(answer.decode())
    except grpc.RpcError as error:
        heard.append(ended(error))
    return ", ".join(heard)


def large(channel):
    request = bytes(range(256)) * (LARGE // 256)
    answer = method(channel, "unary_unary", "Say")(request, timeout=30)
    chatted = list(method(channel, "stream_stream", "Chat")(iter([request, request]), timeout=30))
    return "%s %s" % (answer == b"echo " + request, chatted == [b"re " + request] * 2)


def details(channel):
    try:
        return method(channel, "unary_unary", "Details")(b"", timeout=10)
    except grpc.RpcError as error:
        trailing = {key: value for key, value in error.trailing_metadata()}
        whole = trailing.get("grpc-status-details-bin") == DETAILS
        return "%s, %s, %s" % (ended(error), whole, trailing.get("x-cause"))


def metadata(channel):
    sent = [("x-of-text", "plain, with a comma"), ("x-of-text", "twice"), ("x-of-blob-bin", bytes(range(256)))]
    _, call = method(channel, "unary_unary", "Metadata").with_call(b"", timeout=10, metadata=sent)
    came = lambda all, prefix: [(key[len(prefix):], value) for key, value in all if key.startswith(prefix)]
    same = lambda got: sorted(got, key=repr) == sorted(sent, key=repr)
    return "%s %s" % (same(came(call.initial_metadata(), "head-")), same(came(call.trailing_metadata(), "tail-")))


def deadline(channel):
    """The deadline ends the call at both ends: here with its status, there by being seen."""
    began = time.monotonic()
    try:
        return method(channel, "unary_unary", "Wait")(b"", timeout=0.3)
    except grpc.RpcError as error:
        prompt = time.monotonic() - began < 2
        return "%s, promptly: %s, seen: %s" % (error.code().name, prompt, seen_waiting(channel))


def seen_waiting(channel):
    """Whether one more call has begun to wait, and is over."""
    return "%s, %s" % (unary(channel, "Seen", b"begun 1"), unary(channel, "Seen", b"cancelled 1"))


def patient(channel):
    return "%s, seen: %s" % (unary(channel, "Patient"), seen_waiting(channel))


def shrunk(channel):
    """A fault on purpose takes half a second of a deadline of five."""
    left = float(method(channel, "unary_unary", "Left")(b"", timeout=5, metadata=[("x-slow", "yes")]))
    return "as it should" if 3 < left < 4.8 else "%f left" % left


def cancel(channel):
    call = method(channel, "unary_unary", "Wait").future(b"", timeout=20)
    begun = unary(channel, "Seen", b"begun 1")
    call.cancel()
    return "cancelled: %s, seen: %s, %s" % (call.cancelled(), begun, unary(channel, "Seen", b"cancelled 1"))


def cancel_stream(channel):
    """A stream that is left in the middle, while another goes on."""
    words, others = queue.Queue(), queue.Queue()
    left = method(channel, "stream_stream", "Chat")(iter(words.get, None), timeout=20)
    other = method(channel, "stream_stream", "Chat")(iter(others.get, None), timeout=20)
    heard = []
    for stream, says in [(left, words), (other, others)]:
        says.put(b"begin")
        heard.append(next(stream).decode())
    left.cancel()
    words.put(None)
    others.put(b"go on")
    heard.append(next(other).decode())
    others.put(None)
    return ", ".join(heard + [answer.decode() for answer in other])


def balanced(channel):
    """Who answers each of many calls over one channel."""
    by = [unary(channel, "Who") for _ in range(40)]
    return ", ".join(sorted(set(by)))


def retried(channel):
    """Calls of which half meet an instance that is not available."""
    return ", ".join(sorted({unary(channel, "Flaky") for _ in range(40)}))


def not_retried(channel):
    return ", ".join(sorted({unary(channel, "Steady") for _ in range(40)}))


def quota(channel):
    answers = [unary(channel, "Say", metadata=[("x-tenant", "acme")]) for _ in range(20)]
    over = [answer for answer in answers if not answer.startswith("OK")]
    return "some: %s, then %s" % (0 < len(over) < 20, over[-1] if over else "none")


def many(channel):
    """Calls at the same time over one channel: their answers are their own."""
    calls = [method(channel, "unary_unary", "Say").future(b"%d" % number, timeout=20) for number in range(200)]
    return str(all(call.result() == b"echo %d" % number for number, call in enumerate(calls)))


SCENES = {
    "unary": lambda channel: unary(channel, "Say"),
    "fail": lambda channel: unary(channel, "Fail"),
    "unknown-method": lambda channel: unary(channel, "Nothing"),
    "secret": lambda channel: unary(channel, "Secret"),
    "server-stream": server_stream,
    "client-stream": client_stream,
}


def call(target, authority, scenes):
    options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options + UNLIMITED) as channel:
        for scene in scenes:
            play = SCENES.get(scene) or globals()[scene.replace("-", "_")]
            try:
                print(scene + ":", play(channel))
            except grpc.RpcError as error:
                print(scene + ": unexpected", ended(error))


if sys.argv[1] == "serve":
    serve(sys.argv[2], sys.argv[3])
else:
    call(sys.argv[2], sys.argv[3], sys.argv[4:])
