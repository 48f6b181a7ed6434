"""Hostile requests by how they are sent: addresses, methods, headers, and bytes that are no HTTP."""

from __future__ import annotations

from collections.abc import Iterator

from hostile import CHAT, USER, Case, http, posted


def routes() -> Iterator[Case]:
    """Addresses and methods that there are not."""
    for path in (
        *(
            "/admin",
            "/.env",
            "/.git/config",
            "/docs",
            "/redoc",
            "/v1",
            "/v2/models",
            "/api/pull",
            "/api/delete",
            "/api/create",
        ),
        *(
            "/v1/chat/completions/",
            "//v1/models",
            "/v1//models",
            "/v1/%6dodels/../../x",
            "/%00",
            "/\x7f",
            "/?a=%ff",
            "/%ff",
        ),
        *(
            "/page/",
            "/page/../app.py",
            "/page/..%2fapp.py",
            "/page/%2e%2e/gate.py",
            "/page/index.html.bak",
            "/page//etc/passwd",
        ),
        *("/v1/files", "/v1/models?name=../x", "/" + "a" * 60_000),
    ):
        yield Case(f"GET {path[:40]}", http(f"GET {path}"), (200, 400, 404))
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "FOO", "GET", "post", "PROPFIND", "X" * 300):
        yield Case(f"{method[:10]} {CHAT}", http(f"{method} {CHAT}"), (400, 404, 405))
    for path in ("/v1/models", "/health", "/metrics", "/", "/openapi.json", "/api/tags"):
        yield posted("posted to", path, {"model": "tiny", "messages": USER}, (405,))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    sent = http(f"OPTIONS {CHAT}", Origin="https://example.org", **preflight)
    yield Case("a question of another origin", sent, (403,))


def headers() -> Iterator[Case]:
    """Hosts and origins of others, lengths that are none, requests hidden in requests."""
    for host in (
        *("example.org", "localhost.example.org", "127.0.0.1.example.org", "example.org:8080", "127.0.0.1@example.org"),
        *(
            "[::1].example.org",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "0.0.0.0",
            "[::]",
            "[::ffff:8.8.8.8]",
        ),
        *("localhost, example.org", "example.org#localhost", "example.org/localhost", "localhost:80:90", "[", "]"),
    ):
        yield Case(f"Host {host}", http("GET /v1/models", host=host), (400, 403))
    for origin in ("null", "https://example.org", "http://localhost", "http://localhost:1", "localhost", "", "file://"):
        yield Case(f"Origin {origin}", http("GET /v1/models", Origin=origin, host="localhost:8080"), (403,))
    for length in ("-1", "abc", "1, 2", "+5", "0x10", "9" * 17, "9" * 40, "1e3", "٣", "5 5"):
        sent = http(f"POST {CHAT}", b"{}", Content_Length=length)
        yield Case(f"Content-Length {length[:20]}", sent, (400, 413))
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    inner = get + b"\r\n"
    sent = {
        "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
        "two hosts": get + b"Host: example.org\r\n\r\n",
        "two lengths": post + b"Content-Length: 2\r\nContent-Length: 20\r\n\r\n{}" + inner,
        "length and chunks": post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
        "chunks and length": post
        + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        + inner,
        "two encodings": post + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + inner,
        "an encoding that is none": post + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
        "an encoding behind a space": post + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner,
        "an encoding behind a tab": post + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + inner,
        "a chunk of a size that is none": post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "a chunk of a negative size": post + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        "a chunk of 2**80 bytes": post + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n",
        "a chunk that is longer than told": post + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
        "an extension of a chunk": post
        + b"Transfer-Encoding: chunked\r\n\r\n2;a="
        + b"b" * 9000
        + b"\r\n{}\r\n0\r\n\r\n",
        "a body that breaks off": post + b"Content-Length: 100\r\n\r\n{",
        "chunks that break off": post + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        "a folded header": get + b"X-A: b\r\n folded: c\r\n\r\n",
        "a header without a name": get + b": b\r\n\r\n",
        "a header without a colon": get + b"nonsense\r\n\r\n",
        "a zero byte in a header": get + b"X-A: \x00b\r\n\r\n",
        "a lone line feed": get.replace(b"\r\n", b"\n") + b"\n",
        "a lone carriage return": get + b"X-A: b\rX-B: c\r\n\r\n",
        "a header of 200 kB": get + b"X-A: " + b"b" * 200_000 + b"\r\n\r\n",
        "5,000 headers": get + b"".join(b"X-%d: b\r\n" % each for each in range(5000)) + b"\r\n",
        "HTTP/0.9": b"GET /v1/models\r\n\r\n",
        "HTTP/9.9": b"GET /v1/models HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
        "nothing": b"",
        "line feeds": b"\r\n" * 1000,
        "bytes": bytes(range(256)) * 20,
        "an address of another machine": b"GET http://example.org/v1/models HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "a tunnel": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "a star": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a space in the address": b"GET /v1/models x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an address of other bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "an upgrade": get + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAA\r\n\r\n",
        "an upgrade to HTTP/2": get
        + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n",
        "an expectation": post + b"Expect: the-spanish-inquisition\r\nContent-Length: 2\r\n\r\n{}",
        "a range": get + b"Range: bytes=0-18446744073709551615,0-0\r\n\r\n",
    }
    for name, raw in sent.items():
        yield Case(f"HTTP: {name}", raw, (200, 400, 403, 404, 405, 413))


SENDING = [*routes(), *headers()]
