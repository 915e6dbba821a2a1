"""History is pruned by age and by number; what a rollback or a held key needs stays."""

from __future__ import annotations

import pytest

from perdure.config.keys import DurableAgentSettings
from perdure.config.schema import schema_of
from tests.config_support import PUT, ask, manager
from tests.support import eventually


async def revisions(pool, key: str) -> list[int]:
    rows = await pool.fetch("SELECT revision FROM config_history WHERE config_key = $1 ORDER BY 1", key)
    return [revision for (revision,) in rows]


async def aged(pool, upto: int) -> None:
    await pool.execute("UPDATE config_history SET changed_at = now() - interval '400 days' WHERE revision <= $1", upto)


async def test_old_rows_go_and_the_newest_of_each_key_stays(settings, nc, pool) -> None:
    async with manager(settings) as running:
        await pool.execute(PUT, "assistant", "still", "same")  # 1
        for number in range(2, 8):
            await pool.execute(PUT, "assistant", "moves", str(number))
        await pool.execute("DELETE FROM agent_configurations WHERE config_key = 'still'")  # 8
        await pool.execute(PUT, "assistant", "still", "back")  # 9
        await eventually(lambda: running.sync._said == 9)
        await running.upkeep.look()
        assert await revisions(pool, "moves") == [2, 3, 4, 5, 6, 7]
        await aged(pool, 5)
        await running.upkeep.look()
        assert await revisions(pool, "moves") == [5, 6, 7]
        assert await revisions(pool, "still") == [1, 8, 9]
        for number in (1, 4):
            for subject in ("config.rollback.assistant", "config.get.assistant"):
                refused = await ask(nc, subject, {"revision": number})
                assert refused["error"]["code"] == "not_found"
                assert "history goes back to revision 5" in refused["error"]["message"]
        then = await ask(nc, "config.get.assistant", {"revision": 5})
        assert then["configurations"] == {"moves": "5", "still": "same"}
        back = await ask(nc, "config.rollback.assistant", {"revision": 5})
        assert back["configurations"] == {"moves": "5", "still": "same"}


async def test_more_revisions_than_are_wanted_go_in_batches_and_none_that_was_not_broadcast(
    settings, nc, pool, monkeypatch
) -> None:
    monkeypatch.setattr("config_manager.upkeep.BATCH", 3)
    async with manager(settings, config_history_revisions=5) as running:
        for number in range(1, 21):
            await pool.execute(PUT, "assistant", "moves", str(number))
        await eventually(lambda: running.sync._said == 20)
        await pool.execute("UPDATE config_broadcast SET revision = 12")
        assert await running.upkeep.prune()
        assert await revisions(pool, "moves") == list(range(3, 21))
        await running.upkeep.look()
        assert await revisions(pool, "moves") == list(range(12, 21))
        await pool.execute("UPDATE config_broadcast SET revision = 20")
        await running.upkeep.look()
        assert await revisions(pool, "moves") == list(range(15, 21))
        assert not await running.upkeep.prune()


async def test_the_good_value_of_a_held_key_outlives_its_age(settings, nc, pool) -> None:
    async with manager(settings) as running:
        await ask(nc, "config.schema.assistant", {"schema": schema_of(DurableAgentSettings)})
        for text in ("4", "5", "many", "more"):
            await pool.execute(PUT, "assistant", "max_iterations", text)
        await eventually(lambda: running.sync._said == 4)
        await aged(pool, 4)
        await running.upkeep.look()
        assert await revisions(pool, "max_iterations") == [2, 4]
    async with manager(settings):
        found = await ask(nc, "config.get.assistant")
        assert found["configurations"] == {"max_iterations": "5"}
        assert found["held"]["max_iterations"]["value_revision"] == 2


async def test_a_manager_that_slept_past_the_pruning_reads_all_anew(settings, pool, monkeypatch) -> None:
    monkeypatch.setattr("config_manager.sync.BATCH", 2)  # the next two revisions it would look for are not there
    async with manager(settings, config_history_revisions=1) as running:
        for number in range(1, 6):
            await pool.execute(PUT, "assistant", f"key_{number}", "1")
        await pool.execute("DELETE FROM agent_configurations")
        await eventually(lambda: running.sync._said == 6)
        async with manager(settings, instance_id="sleeper") as sleeper:
            await pool.execute("DELETE FROM config_history WHERE revision < 6")
            await pool.execute("UPDATE config_broadcast SET pruned_to = 6")
            sleeper.table.load(1, [], [])
            await eventually(lambda: sleeper.table.revision == 6)


@pytest.mark.parametrize("field", ["config_history_days", "config_history_revisions"])
def test_a_bound_below_nothing_is_refused(field) -> None:
    from pydantic import ValidationError

    from perdure.settings import Settings

    with pytest.raises(ValidationError, match=field):
        Settings(**{field: -1})
