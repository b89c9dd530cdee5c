"""Bugs where records become dead letters: leaving, what letters say, what keeps records from starting."""

from __future__ import annotations

from tests.planted.bug import Bug

LEAVING = (
    Bug(
        "done-before-the-letter-is-written",
        "A record counts as done when its dead letter is sent, not when that is acknowledged.",
        "runtime.outbox",
        old="        try:\n            await self._producer.send(",
        new="        self._departed(departure)\n"
        "        self._settle(tp, departure)\n"
        "        try:\n"
        "            await self._producer.send(",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "refused-letter-counts-as-written",
        "A letter that its topic refuses is given up, and its record counts as done.",
        "runtime.outbox",
        old="            return False\n",
        new="            pass\n",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "letters-dropped-at-a-revoke",
        "Letters that are on their way in a drain are dropped, and their records count as done.",
        "runtime.rebalance",
        old="        leaving = asyncio.ensure_future(outbox.idle(names, seconds))",
        new="        for partition in partitions:\n"
        "            if partition.queues is not None:\n"
        "                for offset in outbox.waiting(partition.tp):\n"
        "                    partition.queues.tracker.mark_done(offset)\n"
        "                outbox.discard(partition.queues)\n"
        "        return True",
        checks=("LOST",),
    ),
    Bug(
        "drain-waits-for-no-letter",
        "A revoke and a stop do not wait for the letters that are on their way.",
        "runtime.rebalance",
        old="        leaving = asyncio.ensure_future(outbox.idle(names, seconds))",
        new="        return True",
        checks=("DEAD LETTER", "DUPLICATES"),
    ),
    Bug(
        "key-unlocked-while-leaving",
        "The next record of a key starts while a letter of the key is still on its way.",
        "runtime.verdicts",
        old="        self._pool.state.outbox.take(letter)",
        new="        letter.vp = VirtualPartition(vp.queues, None, record)\n"
        "        self._pool.finish(vp)\n"
        "        self._pool.state.outbox.take(letter)",
        checks=("ORDER",),
    ),
    Bug(
        "hold-never-ends",
        "A partition that was held because its letters could not leave is not fetched any more.",
        "runtime.group_state",
        old="        if not by:\n            del self.holds[tp]\n",
        new="",
        checks=("STUCK",),
    ),
)

LETTERS = (
    Bug(
        "letter-without-its-key",
        "Dead letters have no key.",
        "runtime.letters",
        old="        key=record.key,\n",
        new="        key=None,\n",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "letter-without-its-payload",
        "Dead letters have no value, although nobody asked for that.",
        "runtime.letters",
        old="value=None if metadata_only else record.value",
        new="value=None",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "given-up-an-attempt-early",
        "A record is given up one attempt before its last one.",
        "core.failures",
        old="attempts_made >= rules.attempts",
        new="attempts_made >= rules.attempts - 1",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "repeat-gets-new-numbers",
        "A batch whose outcome is not known is repeated with new numbers, as if it were another one.",
        "adapters.aiokafka_producer_lane",
        old='        """Nobody knows, or the broker wants it again: it is repeated as it is."""\n',
        new="        self._renumber()\n",
        checks=("DEAD LETTER",),
    ),
)

RULES = (
    Bug(
        "poison-spreads",
        "While one key is poisoned the records of every key are diverted.",
        "core.poison",
        old="        until = self._poisoned.get(key)\n",
        new="        until = max(self._poisoned.values(), default=None)\n",
        checks=("DEAD LETTER",),
    ),
    Bug(
        "breaker-stays-open",
        "An open breaker stays open a thousand times as long as it has to.",
        "core.breaker",
        old="        self._open_until = now + self._open_seconds\n",
        new="        self._open_until = now + 1000 * self._open_seconds\n",
        checks=("STUCK",),
    ),
    Bug(
        "budget-counts-nothing",
        "Letters that leave are not counted: the budget of dead letters is never used up.",
        "core.dead_letter_budget",
        old="        if self.may_send(now):\n            self.sent(now)\n",
        new="        if self.may_send(now):\n",
        checks=("DEAD LETTER",),
    ),
)

IN_LETTERS = (*LEAVING, *LETTERS, *RULES)
