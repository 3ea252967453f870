"""`apprentice feedback list | show | send | withdraw`: one's feedback and what became of it."""

import argparse
from collections.abc import Sequence
from typing import Any

from server.commands.client import Client, add_action, add_arguments, segment
from server.commands.command import OK, CommandError, parser, plain, print_json


def main(argv: Sequence[str]) -> int:
    """Do one thing with feedback. Raises `CommandError`."""
    arguments = _parse(argv)
    client = Client.of(arguments)
    actions = {"list": _list, "show": _show, "send": _send, "withdraw": _withdraw}
    answer = actions[arguments.action](client, arguments)
    if arguments.json:
        print_json(answer)
    else:
        print(plain(_text(arguments.action, answer)))
    return OK


def _list(client: Client, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return list(client.pages("/v1/feedback", status=arguments.status))


def _show(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/feedback/{segment(arguments.id)}")
    return found


def _withdraw(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    gone: dict[str, Any] = client.delete(f"/v1/feedback/{segment(arguments.id)}")
    return gone


def _send(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = ("correction", "instruction", "rating")
    given = {kind: getattr(arguments, kind) for kind in kinds if getattr(arguments, kind) is not None}
    if len(given) != 1:
        raise CommandError("say one thing", "give one of --correction, --instruction and --rating")
    ((kind, value),) = given.items()
    body = {
        "completion_id": arguments.completion_id,
        "choice": arguments.choice,
        "kind": kind,
        "value" if kind == "rating" else "text": value,
    }
    if arguments.contains is not None:
        body["check"] = {"contains": arguments.contains}
    accepted: dict[str, Any] = client.post("/v1/feedback", body)
    return accepted


def _text(action: str, answer: Any) -> str:
    """The answer for people."""
    if action == "send":
        return f"{answer['id']} {answer['status']}; `apprentice feedback list` tells what became of it"
    if action != "list":
        return "\n".join(f"{key:>14}  {value}" for key, value in answer.items() if value is not None)
    if not answer:
        return "no feedback yet; `apprentice demo` gives some"
    return "\n".join(_line(one) for one in answer)


def _line(one: dict[str, Any]) -> str:
    """One piece of feedback: what became of it, and what it says."""
    fate = one["status"]
    if one["policy"] is not None:
        fate += f" by policy {one['policy']}"
    if one["reason"]:
        fate += f" ({one['reason']})"
    said = one["text"] if one["value"] is None else f"{one['value']:+g}"
    return f"{one['id']}  {fate}  {one['kind'] or 'erased'}: {said or ''}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("feedback", "List, show, send or withdraw feedback.")
    add_arguments(made)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_action(actions, "list", "all of it, oldest first")
    listing.add_argument("--status", default=None, help="only of this status, such as served or refused")
    for name, what in (("show", "one piece of it"), ("withdraw", "take it out of all future rounds")):
        add_action(actions, name, what).add_argument("id")
    send = add_action(actions, "send", "say what a reply should have been")
    send.add_argument("completion_id", help="the `id` of the reply")
    send.add_argument("--correction", default=None, metavar="TEXT", help="what the answer should have been")
    send.add_argument("--instruction", default=None, metavar="TEXT", help="how to change it")
    send.add_argument("--rating", type=float, default=None, metavar="N", help="how good it was, -1 to 1")
    send.add_argument("--contains", default=None, metavar="TEXT", help="what a right answer contains")
    send.add_argument("--choice", type=int, default=0, help="which choice of the reply (default: 0)")
    return made.parse_args(argv)
