"""Is a page well-formed, and would it make a request? For the tests of the HTML report."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input", "path", "use", "rect", "line", "circle"}


class Checker(HTMLParser):
    """Records unclosed tags, scripts, ids, links and every attribute that could make a request."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.fragments: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name == "href" and value:
                self.fragments.append(value)
            if name in ("src", "srcset", "data", "action", "poster") or name.startswith("on"):
                self.problems.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


def checked(html: str) -> Checker:
    """The page, parsed to its end."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    return checker
