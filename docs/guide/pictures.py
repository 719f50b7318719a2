#!/usr/bin/env python3
"""Writes the pictures of the guide to src/pictures as SVG.

Usage: python3 docs/guide/pictures.py [--check]

With --check nothing is written, and the exit code is 1 if a picture is not current.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "src" / "pictures"
INK = "#1f2933"
CONTROL = "#d9e8fb"
BULK = "#dcf3e0"
SECURE = "#fbe9d2"
NEUTRAL = "#f2f4f7"
WHITE = "#ffffff"


class Picture:
    """A drawing of boxes, arrows and texts; all numbers are pixels."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title = width, height, title
        self.parts = []

    def box(self, x, y, width, height, fill, *lines, top=False):
        """Draws a box; the first line is bold, and above the others or at the top."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}"/>'
        )
        first = y + 21 if top else y + height / 2 - (len(lines) - 1) * 9 + 5
        for index, line in enumerate(lines):
            self.text(x + width / 2, first + index * 18, line, bold=index == 0)

    def text(self, x, y, text, anchor="middle", bold=False, small=False):
        """Writes one line; `y` is its base line."""
        weight = ' font-weight="bold"' if bold else ""
        size = ' font-size="12"' if small else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}{size}>{escape(text)}</text>'
        )

    def arrow(self, *points, label="", at=None, both=False, dashed=False, anchor="middle"):
        """Draws an arrow along the points, and a label whose base line is at the point `at`."""
        line = " ".join(f"{x},{y}" for x, y in points)
        start = ' marker-start="url(#start)"' if both else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{line}" fill="none" marker-end="url(#end)"{start}{dash}/>'
        )
        if label:
            x, y = at
            for index, part in enumerate(label.split("\n")):
                self.text(x, y + index * 15, part, small=True, anchor=anchor)

    def svg(self):
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
                f' width="{self.width}" height="{self.height}" role="img"'
                ' font-family="Helvetica, Arial, sans-serif" font-size="14">',
                f"<title>{escape(self.title)}</title>",
                "<defs>",
                '<marker id="end" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9"'
                ' markerHeight="9" orient="auto"><path d="M0,0 L10,5 L0,10 z" stroke="none"'
                f' fill="{INK}"/></marker>',
                '<marker id="start" viewBox="0 0 10 10" refX="1" refY="5" markerWidth="9"'
                ' markerHeight="9" orient="auto"><path d="M10,0 L0,5 L10,10 z" stroke="none"'
                f' fill="{INK}"/></marker>',
                "</defs>",
                f'<rect width="{self.width}" height="{self.height}" fill="{WHITE}"/>',
                f'<g stroke="{INK}" stroke-width="1.2">',
                *[part for part in self.parts if not part.startswith("<text")],
                "</g>",
                f'<g fill="{INK}">',
                *[part for part in self.parts if part.startswith("<text")],
                "</g>",
                "</svg>",
                "",
            ]
        )


def planes():
    picture = Picture(760, 330, "Two processes, connected by a control plane and a bulk plane")
    for x, name in [(10, "process A"), (520, "process B")]:
        picture.box(x, 10, 230, 310, NEUTRAL, name, top=True)
        picture.box(x + 15, 45, 200, 125, CONTROL, "RpcEnv", "rpc-core", top=True)
        picture.box(x + 30, 95, 80, 60, WHITE, "endpoint", "inbox")
        picture.box(x + 120, 95, 80, 60, WHITE, "endpoint", "inbox")
        picture.box(x + 15, 185, 200, 125, BULK, "TransportContext", "network-common", top=True)
        picture.box(x + 30, 235, 80, 60, WHITE, "handler")
        picture.box(x + 120, 235, 80, 60, WHITE, "streams", "files")
    picture.arrow(
        (225, 107), (535, 107), both=True, at=(380, 70),
        label="control plane: sends, asks, replies\none connection, typed messages",
    )
    picture.text(380, 130, "50 bytes to 1 MiB", small=True)
    picture.arrow(
        (225, 247), (535, 247), both=True, at=(380, 210),
        label="bulk plane: chunks, streams, uploads\npooled connections, sendfile",
    )
    picture.text(380, 270, "1 MiB to many GiB", small=True)
    return picture


def message():
    picture = Picture(760, 330, "The life of an ask: send, route, inbox, receive, reply")
    picture.box(10, 10, 330, 310, NEUTRAL, "caller's process", top=True)
    picture.box(420, 10, 330, 310, NEUTRAL, "callee's process", top=True)
    picture.box(25, 50, 130, 60, CONTROL, "1 ref", "ask(Name)")
    picture.box(195, 50, 130, 60, CONTROL, "2 route", "number, credit")
    picture.box(195, 140, 130, 60, CONTROL, "3 connection", "write queue")
    picture.box(435, 140, 130, 60, CONTROL, "4 connection", "decoder")
    picture.box(435, 50, 130, 60, CONTROL, "5 inbox", "limits")
    picture.box(605, 50, 130, 60, CONTROL, "6 receive", "call.reply(..)")
    picture.box(605, 240, 130, 60, CONTROL, "7 reply", "or failure")
    picture.box(25, 240, 130, 60, CONTROL, "8 AskFuture", "Greeting")
    picture.arrow((155, 80), (195, 80))
    picture.arrow((260, 110), (260, 140))
    picture.arrow((325, 170), (435, 170), label="frame", at=(380, 162))
    picture.arrow((500, 140), (500, 110))
    picture.arrow((565, 80), (605, 80))
    picture.arrow((670, 110), (670, 240))
    picture.arrow((605, 270), (155, 270), label="response", at=(380, 262))
    picture.arrow((435, 64), (325, 64), dashed=True, label="credit", at=(380, 56))
    picture.text(90, 135, "timeout, drop or abort", small=True)
    picture.text(90, 150, "cancels the ask", small=True)
    return picture


def endpoint():
    picture = Picture(760, 250, "The states of an endpoint")
    states = [
        (15, "starting", "on_start runs;", "messages queue"),
        (205, "running", "receive and events", "run"),
        (395, "stopping", "receive runs for", "queued messages"),
        (585, "stopped", "on_stop runs", "once, last, alone"),
    ]
    for x, name, method, note in states:
        picture.box(x, 90, 160, 76, CONTROL, name, method, note)
    picture.arrow((95, 50), (95, 90), label="setup_endpoint", at=(95, 42))
    picture.arrow((175, 128), (205, 128), label="on_start\nreturns", at=(190, 67))
    picture.arrow((365, 128), (395, 128), label="env.stop(&ref)\nenv.shutdown()", at=(380, 67))
    picture.arrow((555, 128), (585, 128), label="the queue\nis empty", at=(570, 67))
    picture.arrow((665, 166), (665, 202), label="the endpoint\nis dropped", at=(665, 218))
    picture.arrow(
        (315, 166), (315, 196), (255, 196), (255, 166),
        label="an error or panic calls on_error;\nthe endpoint continues", at=(285, 214),
    )
    picture.text(475, 188, "new messages are rejected;", small=True)
    picture.text(475, 203, "the name is free", small=True)
    return picture


def secured():
    picture = Picture(760, 380, "The layers of a secured connection")
    rows = [
        (CONTROL, "endpoints", "typed messages", "your code"),
        (CONTROL, "envelope", "route, timeout, trace, body", "rpc-core, protobuf"),
        (SECURE, "authentication", "first, both peers prove the secret", "spark.authenticate"),
        (BULK, "frames", "RPC, chunk, stream, upload", "network-common, Spark's format"),
        (SECURE, "AES filter", "encrypts the frames, if there is no TLS",
         "spark.network.crypto.enabled"),
        (SECURE, "TLS 1.3", "encrypts; proves the server's name", "spark.ssl.rpc.enabled"),
        (NEUTRAL, "TCP", "or MemoryNetwork in tests", ""),
    ]
    picture.text(245, 24, "layer", bold=True)
    picture.text(475, 24, "setting or crate", anchor="start", bold=True)
    for index, (fill, name, text, note) in enumerate(rows):
        y = 36 + index * 48
        picture.box(70, y, 350, 42, fill, name, text)
        picture.text(475, y + 26, note, anchor="start", small=True)
        if note:
            picture.parts.append(
                f'<polyline points="425,{y + 21} 465,{y + 21}" fill="none" stroke-dasharray="2 3"/>'
            )
    picture.arrow((40, 52), (40, 355), both=True)
    picture.text(40, 44, "process", small=True)
    picture.text(40, 371, "network", small=True)
    return picture


def main():
    check = sys.argv[1:] == ["--check"]
    is_current = True
    FOLDER.mkdir(exist_ok=True)
    for draw in [planes, message, endpoint, secured]:
        path, svg = FOLDER / f"{draw.__name__}.svg", draw().svg()
        if check:
            is_current &= path.exists() and path.read_text() == svg
        else:
            path.write_text(svg)
    if not is_current:
        sys.exit("a picture is not current: run python3 docs/guide/pictures.py")


if __name__ == "__main__":
    main()
