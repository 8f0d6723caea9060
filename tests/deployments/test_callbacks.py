"""Callbacks to a real HTTP server on this machine."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from deployments.callbacks import RETRY_DELAYS_S, CallbackError, CallbackRules, Sender, check_url, next_attempt_at
from tests.deployments.receiver import Receiver

RULES = CallbackRules(hosts=("127.0.0.1", "localhost", "*.example.com"), allow_private=True, secret="key")
CONTENT = {"request_id": "a", "status": "completed", "title": "Übung"}


OpenSender = Callable[[CallbackRules], Sender]


@pytest.fixture
async def open_sender() -> AsyncIterator[OpenSender]:
    senders = []

    def open_it(rules: CallbackRules) -> Sender:
        senders.append(Sender(rules))
        return senders[-1]

    yield open_it
    for sender in senders:
        sender.close()


async def test_a_callback_arrives_as_signed_json(receiver: Receiver, open_sender: OpenSender) -> None:
    assert await open_sender(RULES).deliver(receiver.url, "job-1", CONTENT)
    [(path, headers, body)] = receiver.received
    assert path == "/done?job=1"
    assert json.loads(body) == CONTENT
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "job-1"
    signed = b"job-1." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.new(b"key", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_without_a_secret_there_is_no_signature(receiver: Receiver, open_sender: OpenSender) -> None:
    assert await open_sender(replace(RULES, secret="")).deliver(receiver.url, "job-1", CONTENT)
    assert "webhook-signature" not in receiver.received[0][1]


async def test_the_receiver_sees_the_host_it_was_called_by(receiver: Receiver, open_sender: OpenSender) -> None:
    url = f"http://localhost:{receiver.server_port}/"
    assert await open_sender(RULES).deliver(url, "job-1", CONTENT)
    assert receiver.received[0][1]["host"] == f"localhost:{receiver.server_port}"


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_whatever_is_no_success_is_to_be_tried_again(
    receiver: Receiver, status: int, open_sender: OpenSender
) -> None:
    receiver.status = status
    with pytest.raises(CallbackError, match=str(status)):
        await open_sender(RULES).deliver(receiver.url, "job-1", CONTENT)
    assert len(receiver.received) == 1  # a redirect is not followed


async def test_a_receiver_that_is_gone_wants_no_more(receiver: Receiver, open_sender: OpenSender) -> None:
    receiver.status = 410
    assert not await open_sender(RULES).deliver(receiver.url, "job-1", CONTENT)


@pytest.mark.parametrize("label", ["a" * 64, "a..b"])
async def test_a_name_that_none_can_have_is_not_found(label: str, open_sender: OpenSender) -> None:
    with pytest.raises(CallbackError, match="cannot be resolved"):
        await open_sender(RULES).deliver(f"http://{label}.example.com/", "job-1", CONTENT)


async def test_a_receiver_that_never_answers_is_given_up(
    receiver: Receiver, open_sender: OpenSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.callbacks.TIMEOUT_S", 0.2)
    receiver.answers.clear()
    with pytest.raises(CallbackError, match="cannot be reached"):
        await open_sender(RULES).deliver(receiver.url, "job-1", CONTENT)


async def test_nobody_there_is_an_error_without_addresses(receiver: Receiver, open_sender: OpenSender) -> None:
    receiver.shutdown()
    receiver.server_close()
    with pytest.raises(CallbackError, match="cannot be reached") as error:
        await open_sender(RULES).deliver(receiver.url, "job-1", CONTENT)
    assert "127" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_private_addresses_are_refused_by_address_not_by_name(
    receiver: Receiver, host: str, open_sender: OpenSender
) -> None:
    url = f"http://{host}:{receiver.server_port}/"
    with pytest.raises(CallbackError, match="private address"):
        await open_sender(replace(RULES, allow_private=False)).deliver(url, "job-1", CONTENT)
    assert receiver.received == []


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "100.64.0.1"])
async def test_no_private_address_is_public(address: str, open_sender: OpenSender) -> None:
    rules = CallbackRules(hosts=(address.strip("[]"),))
    with pytest.raises(CallbackError, match="private address"):
        await open_sender(rules).deliver(f"http://{address}/", "job-1", CONTENT)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://localhost/", "http or https"),
        ("file:///etc/passwd", "http or https"),
        ("localhost/done", "http or https"),
        ("http://user:word@localhost/", "password"),
        ("http://elsewhere.org/", "not allowed"),
        ("http://example.com.elsewhere.org/", "not allowed"),
        ("http://example.com/", "not allowed"),
        ("http://localhost:99999/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://localhost/a b", "characters"),
        ("http://localhost/a\nb", "characters"),
        ("http://ü.example.com/", "characters"),
        ("http://localhost/" + "a" * 3000, "longer"),
    ],
)
def test_a_url_is_checked_before_anything_is_looked_up(url: str, problem: str) -> None:
    with pytest.raises(CallbackError, match=problem):
        check_url(url, RULES)


def test_hosts_below_an_allowed_one_are_allowed() -> None:
    check_url("https://a.b.EXAMPLE.com:8443/x", RULES)


def test_without_hosts_callbacks_are_off() -> None:
    with pytest.raises(CallbackError, match="callbacks are off"):
        check_url("https://example.com/", CallbackRules())


def test_deliveries_back_off_and_end() -> None:
    at, attempts = 0.0, 0
    while (following := next_attempt_at(attempts := attempts + 1, at)) is not None:
        assert following > at
        at = following
    assert attempts == len(RETRY_DELAYS_S) + 1
    assert 20 * 3600 < at < 30 * 3600
