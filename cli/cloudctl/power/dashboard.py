"""A login to the dashboard over HTTPS, as a browser would do it: form, token, cookies, the page behind it."""

from __future__ import annotations

import html.parser
import http.cookiejar
import ssl
import urllib.error
import urllib.parse
import urllib.request

from cloudctl.errors import VerifyFailed
from cloudctl.openrc import ca_file, write_ca
from cloudctl.site.model import Site

TIMEOUT = 60.0  # seconds for one page; the first one after a start compiles templates


class _Form(html.parser.HTMLParser):
    """Collects the inputs of the form that has a password field."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.action = ""
        self._form: tuple[str, dict[str, str]] = ("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._form = (values.get("action", ""), {})
        elif tag == "input" and values.get("name"):
            self._form[1][values["name"]] = values.get("value", "")
            if values.get("type") == "password":
                self.action, self.fields = self._form


def login_form(page: str) -> tuple[str, dict[str, str]]:
    """Return the address and fields of a page's login form; no fields where there is none. Pure."""
    parser = _Form()
    parser.feed(page)
    return parser.action, parser.fields


def log_in(site: Site) -> str:
    """Log in as the administrator, and see a page that needs it.

    Returns:
        A few words about what was seen.

    Raises:
        VerifyFailed: a step of it does not work; says which.
    """
    address = site.get("vip.external", None) or site.get("vip.internal")
    base = f"https://{address}/"
    write_ca(site)
    ca = ca_file(site)
    context = ssl.create_default_context(cafile=str(ca) if ca.exists() else None)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
    )

    def fail(what: str) -> VerifyFailed:
        return VerifyFailed(
            "dashboard-login", f"the dashboard at {base}: {what}", where=base,
            hint="see the dashboard's containers and logs on the controllers",
        )  # fmt: skip

    def fetch(url: str, data: dict[str, str] | None = None) -> tuple[str, str]:
        body = urllib.parse.urlencode(data).encode() if data is not None else None
        request = urllib.request.Request(url, data=body, headers={"Referer": base})
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return answer.geturl(), answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise fail(f"HTTP {error.code} for {urllib.parse.urlsplit(url).path}") from None
        except (OSError, ssl.SSLError) as error:
            raise fail(f"no answer: {getattr(error, 'reason', error)}") from None

    url, page = fetch(base)
    action, fields = login_form(page)
    if not fields:
        raise fail("its first page has no login form")
    user = next((name for name in ("username", "user") if name in fields), "username")
    fields |= {user: "admin", "password": site.secrets["admin_password"]}
    if "domain" in fields:
        fields["domain"] = fields["domain"] or "Default"
    url, page = fetch(urllib.parse.urljoin(url, action or url), fields)
    if login_form(page)[1]:
        raise fail("it does not accept the administrator's password")
    return f"logged in at {base}, landed on {urllib.parse.urlsplit(url).path}"
