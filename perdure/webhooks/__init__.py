"""Webhooks: signed as Standard Webhooks says, sent only to addresses that may be reached, never followed elsewhere."""

from perdure.webhooks.sender import NotDelivered, WebhookSender
from perdure.webhooks.signing import sign, verify
from perdure.webhooks.targets import check_url

__all__ = ["NotDelivered", "WebhookSender", "check_url", "sign", "verify"]
