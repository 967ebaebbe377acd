"""OSDs come, go and are replaced: decisions are pure, actions can be repeated.

``forecast`` says what a removal would do, ``drain`` empties OSDs, ``remove`` takes empty ones out.
"""

from cloudctl.osd.act import drain, look_ahead, read_at_rest, refuse, remove
from cloudctl.osd.forecast import Forecast, forecast
from cloudctl.osd.remote import create, read

__all__ = [
    "Forecast",
    "create",
    "drain",
    "forecast",
    "look_ahead",
    "read",
    "read_at_rest",
    "refuse",
    "remove",
]
