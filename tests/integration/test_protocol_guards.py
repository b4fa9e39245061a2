"""Every guard in the scripts is needed: without it, a test of the protocol fails.

Each row takes one guard out of the Lua and runs the test that is meant to notice. A guard that no test misses is either
superfluous or untested.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import pytest
import redis

from tasks import lua
from tasks.errors import PenstockError
from tests.integration import test_line_limits as limits
from tests.integration import test_line_order as order
from tests.integration import test_line_yield as yields
from tests.integration import test_protocol_lost_writes as lost
from tests.integration import test_protocol_ownership as own
from tests.integration import test_protocol_preempt as preempt
from tests.integration import test_protocol_reap as reap
from tests.integration import test_protocol_relay as relay
from tests.integration import test_protocol_step as step
from tests.integration import test_protocol_submit as submit
from tests.integration import test_protocol_watch as watch
from tests.integration.protocol_rig import Rig


class Guard(NamedTuple):
    """`text` in a script (or in one of `lua.COMMON`: then in all) becomes `without`, and `test` must fail."""

    name: str
    script: str
    text: str
    without: str
    test: Callable[..., Any]
    args: tuple[Any, ...] = ()


DEADLINE = "r.deadline > 0 and r.deadline < t"
XADD = "redis.call('XADD', K.log .. r.id, 'NOMKSTREAM', entry_id, 'e', json)"
STRIKE = "if r.seq == r.claim_seq + 1 then r.strikes"

GUARDS = [
    # who owns the job
    Guard("the fence is compared", "prelude", " and r.fence == fence end", " end", own.test_race_1_and_12_a_zombie_neither_writes_into_nor_renews_the_next_attempt),
    Guard("only a running job has an owner", "prelude", "r.state == 'running' and r.fence", "r.fence", own.test_race_1_nobody_writes_after_the_terminal_entry),
    Guard("the clock is in the fence", "prelude", "math.max(r.fence + 1, t - r.created)", "r.fence + 1", lost.test_race_5_a_fence_is_never_given_twice),
    Guard("the last fence is in the fence", "prelude", "math.max(r.fence + 1, t - r.created)", "t - r.created", own.test_a_fence_rises_even_when_the_clock_went_back),
    Guard("the fence is raised before requeueing", "ends", "raise(r, t)\n  if r.cancel == 1", "if r.cancel == 1", own.test_race_1_between_requeue_and_the_next_claim_the_former_owner_writes_nothing, ("lease",)),
    Guard("the fence is raised at a claim", "claim", "raise(r, t)\n      if r.cancel == 1", "if r.cancel == 1", lost.test_race_5_a_fence_is_never_given_twice),
    Guard("a renewal names its fence", "renew", "not owned(r, tonumber(ARGV[i + 1]))", "not r or r.state ~= 'running'", own.test_race_1_and_12_a_zombie_neither_writes_into_nor_renews_the_next_attempt),
    Guard("a release names its fence", "release", "not owned(r, tonumber(ARGV[2]))", "not r or r.state ~= 'running'", own.test_race_1_and_12_a_zombie_neither_writes_into_nor_renews_the_next_attempt),
    Guard("a draining worker claims nothing", "claim", "redis.call('EXISTS', K.draining .. worker) == 1", "false", own.test_a_draining_worker_claims_nothing_and_the_job_keeps_its_place),
    Guard("only a queued job is claimed", "claim", "r and r.state == 'queued'", "r", own.test_a_claim_drops_what_cannot_run_and_takes_the_next),
    Guard("a claim is bounded", "claim", " or dropped == 32", "", own.test_a_claim_looks_at_a_bounded_number_of_jobs),
    # the log
    Guard("the log is dense", "step", "if w.first > r.seq + 1 then", "if false then", step.test_race_3_a_worker_ahead_of_the_log_is_told_where_to_resend_from),
    Guard("a renewal notices a shorter log", "renew", "tonumber(ARGV[i + 2]) > r.seq", "false", step.test_race_3_a_worker_ahead_of_the_log_is_told_where_to_resend_from),
    Guard("entries that are there are skipped", "step", "for i = r.seq - w.first + 2, w.n do", "for i = 1, w.n do", step.test_race_3_a_step_repeated_after_a_timeout_is_accepted_and_changes_nothing),
    Guard("my own end is a success", "step", "return mine and 'ok' or 'fenced'", "return 'fenced'", step.test_race_4_the_end_goes_in_the_same_call_as_the_last_token),
    Guard("only my own end is a success", "step", "r.state == w.state and ", "", step.test_race_4_the_end_goes_in_the_same_call_as_the_last_token),
    Guard("a log is not created again", "step", "'NOMKSTREAM', ", "", step.test_race_1_a_zombie_does_not_recreate_an_expired_log),
    Guard("a missing log is noticed", "step", f"if not {XADD} then return false end", XADD, step.test_race_1_a_zombie_does_not_recreate_an_expired_log),
    Guard("a step is checked before it writes", "step", "assert(w.message and", "assert(true or w.message and", step.test_a_malformed_step_writes_nothing_for_anyone),
    Guard("an end must be the last entry", "step", "if w.state ~= '' and w.first", "if false and w.first", step.test_an_end_whose_place_is_taken_is_refused),
    Guard("terminal states absorb", "ends", "if terminal(r.state) then return 'already '", "if false then return 'already '", submit.test_cancelling_in_line_is_immediate_and_terminal_states_absorb),
    Guard("only watched jobs are relayed", "step", "redis.call('SMEMBERS', K.watch .. id)", "redis.call('ZRANGE', K.apis_, 0, -1)", relay.test_race_16_an_api_process_gets_only_the_jobs_that_it_watches),
    # cancel and deadline
    Guard("a step reads the cancel", "prelude", "if r.cancel == 1 then return 'cancel' end", "", step.test_race_8_a_cancel_is_durable_and_seen_by_step_and_renew),
    Guard("requeueing reads the cancel", "ends", "if r.cancel == 1 then return finish", "if false then return finish", own.test_race_8_a_cancel_outlives_its_owner, ("lease",)),
    Guard("a claim reads the cancel", "claim", "if r.cancel == 1 then", "if false then", own.test_a_job_in_line_whose_cancel_was_accepted_is_not_claimed),
    Guard("a step reads the deadline", "prelude", f"return {DEADLINE} and 'deadline' or 'ok'", "return 'ok'", own.test_race_20_the_deadline_belongs_to_the_job_not_to_the_attempt),
    Guard("requeueing reads the deadline", "ends", f"if {DEADLINE} then", "if false then", own.test_race_20_the_deadline_belongs_to_the_job_not_to_the_attempt),
    Guard("a claim reads the deadline", "claim", f"elseif {DEADLINE} then", "elseif false then", own.test_a_claim_drops_what_cannot_run_and_takes_the_next),
    Guard("a reaper reads the deadline", "reap", "if r and r.state == 'queued' then", "if false then", reap.test_a_deadline_ends_a_waiting_job_and_leaves_a_running_one_to_its_worker),
    Guard("a reaper leaves running ones to their worker", "reap", "if r and r.state == 'queued' then", "if r then", reap.test_a_deadline_ends_a_waiting_job_and_leaves_a_running_one_to_its_worker),
    # leases, poison
    Guard("an outage is noticed", "reap", "t - tick > away or t < tick", "t < tick", reap.test_race_10_after_an_outage_every_lease_gets_a_full_term),
    Guard("an outage is not an orphan's time", "reap", "redis.call('ZINCRBY', K.orphans_, int(t - tick), id)", "", reap.test_race_15_an_outage_does_not_count_as_an_orphans_time),
    Guard("a first reap knows of no outage", "reap", "tick > 0 and redis.call('ZRANGE', K.orphans_, 0, -1) or {}", "redis.call('ZRANGE', K.orphans_, 0, -1)", reap.test_race_15_an_outage_does_not_count_as_an_orphans_time),
    Guard("a clock that went back is noticed", "reap", "t - tick > away or t < tick", "t - tick > away", reap.test_race_10_a_clock_that_went_back_counts_as_an_outage),
    Guard("a short lease ends in a short outage", "reap", "math.min(3000, lease * 2 / 3)", "3000", reap.test_race_10_an_outage_is_two_thirds_of_a_short_lease),
    Guard("a long lease does not hide an outage", "reap", "math.min(3000, lease * 2 / 3)", "lease * 2 / 3", reap.test_race_10_an_outage_is_two_thirds_of_a_short_lease),
    Guard("a reaper's own pause is no outage", "reap", "math.max(1500, ", "math.max(0, ", reap.test_a_reapers_own_pause_is_no_outage),
    Guard("a corrupt record stops nobody", "reap", "local sound, why = pcall(act, id)", "local sound, why = true, act(id)", reap.test_a_corrupt_record_does_not_stop_the_reaping_of_others),
    Guard("a corrupt record leaves the index", "reap", "redis.call('ZREM', index, id)\n      for", "for", reap.test_a_corrupt_record_does_not_stop_the_reaping_of_others),
    Guard("a corrupt record goes some day", "reap", "redis.call('EXPIRE', family .. id, 86400)", "", reap.test_a_corrupt_record_does_not_stop_the_reaping_of_others),
    Guard("a job without its spec is corrupt", "reap", " and redis.call('HEXISTS', K.job .. id, 'spec') == 1", "", reap.test_a_corrupt_record_does_not_stop_the_reaping_of_others),
    Guard("an unknown state is corrupt", "reap", "known and r.model", "r.model", reap.test_a_corrupt_record_does_not_stop_the_reaping_of_others),
    Guard("a dead process leaves corrupt records alone", "reap", "pcall(unwatch, id, name)", "unwatch(id, name)", reap.test_a_corrupt_record_does_not_keep_a_dead_api_process),
    Guard("a token clears the strikes", "step", "if new > 0 and r.strikes > 0 then set(r, 'strikes', 0, 'alone', 0) end", "", reap.test_a_strike_is_a_loss_without_a_new_token_and_a_token_clears_them),
    Guard("only a token clears the strikes", "step", "if new > 0 and r.strikes", "if r.strikes", reap.test_a_strike_is_a_loss_without_a_new_token_and_a_token_clears_them),
    Guard("only a silent attempt is a strike", "ends", STRIKE, "if true then r.strikes", reap.test_a_silent_workers_job_goes_back_into_line_with_its_tokens),
    Guard("strikes count", "ends", STRIKE, "if false then r.strikes", reap.test_deaths_while_alone_make_a_job_poison),
    Guard("only deaths alone are poison", "ends", "(r.strikes >= max_strikes and r.alone == 1)", "r.strikes >= max_strikes", reap.test_deaths_in_company_do_not_make_a_job_poison),
    Guard("losses are bounded", "ends", " or r.losses >= max_losses", "", reap.test_a_job_that_lost_too_many_workers_fails_whatever_it_emitted),
    Guard("a release is no loss", "release", "take_away(r, now(), false)", "take_away(r, now(), true, 9, 9)", own.test_release_adds_neither_strike_nor_loss),
    Guard("only a running job is preempted", "preempt", "if r.state ~= 'running' then", "if false then", preempt.test_what_does_not_run_is_not_preempted),
    Guard("a preemption is no loss", "preempt", "take_away(r, now(), false)", "take_away(r, now(), true, 9, 9)", preempt.test_a_preempted_job_goes_back_into_line_with_its_tokens_and_without_blame),
    Guard("the fence is raised before a preemption", "ends", "raise(r, t)\n  if r.cancel == 1", "if r.cancel == 1", preempt.test_a_preempted_job_goes_back_into_line_with_its_tokens_and_without_blame),
    Guard("a preemption reads the cancel", "ends", "if r.cancel == 1 then return finish", "if false then return finish", preempt.test_a_preempted_job_that_was_to_end_ends, ("cancel",)),
    Guard("a preemption reads the deadline", "ends", f"if {DEADLINE} then", "if false then", preempt.test_a_preempted_job_that_was_to_end_ends, ("deadline",)),
    Guard("a requeued job has no lease", "ends", "redis.call('ZREM', K.leases_, r.id)\n", "", own.test_race_1_between_requeue_and_the_next_claim_the_former_owner_writes_nothing, ("lease",)),
    # the line, tickets, keys
    Guard("a requeued job keeps its score", "line", "int(r.score), r.id)\n  count", "redis.call('INCR', K.tickets_), r.id)\n  count", own.test_race_9_a_requeued_job_keeps_its_place),
    Guard("tickets do not grow", "line", "if redis.call('LLEN', K.queue .. r.model) < redis.call('ZCARD', K.waiting .. r.model) then", "if true then", submit.test_race_14_submit_and_cancel_do_not_grow_the_ticket_list),
    Guard("ticket ids are fresh after lost writes", "line", "int(now()) .. '-' .. redis", "redis", submit.test_race_14_every_ticket_has_a_fresh_task_id_even_after_lost_writes),
    Guard("lost tickets are replaced", "reap", "for _ = 1, math.min(short, BATCH) do", "for _ = 1, 0 do", reap.test_race_14_lost_tickets_are_replaced_and_spare_ones_are_left),
    Guard("the line has a limit", "submit", "if waiting >= o.max_jobs then", "if false then", submit.test_a_full_line_refuses_and_leaves_nothing_behind),
    Guard("a key without its record is free", "submit", "if redis.call('EXISTS', K.job .. other) == 1 then", "if true then", submit.test_race_17_an_idempotency_key_lives_exactly_as_long_as_its_record),
    Guard("a key belongs to one body", "submit", "other_hash == o.hash and 'existing'", "true and 'existing'", submit.test_an_idempotency_key_leads_to_the_same_job_and_refuses_another_body),
    Guard("a caller that comes back by its key has time to attach", "submit", "redis.call('ZADD', K.orphans_, 'XX', 'GT', int(now() + o.term), other)", "", submit.test_race_15_a_caller_that_comes_back_by_its_key_is_not_overtaken_by_the_reaper),
    Guard("only an orphan is given that time", "submit", "'XX', 'GT',", "'GT',", submit.test_an_idempotency_key_leads_to_the_same_job_and_refuses_another_body),
    Guard("an unwatched job releases its key", "ends", "redis.call('DEL', K.idem .. r.idem)", "", submit.test_race_17_a_job_cancelled_because_nobody_listens_releases_its_key),
    Guard("a released key is forgotten", "ends", "set(r, 'idem', '')", "", submit.test_a_released_key_is_not_touched_by_the_end_of_its_former_job),
    Guard("a key lives as long as its record", "ends", "if r.idem ~= '' then redis.call('EXPIRE', K.idem .. r.idem, r.keep + 3600) end", "", submit.test_race_17_an_idempotency_key_lives_exactly_as_long_as_its_record),
    Guard("a late reader prolongs", "attach", "if terminal(r.state) then expire(r) end", "", submit.test_race_17_an_idempotency_key_lives_exactly_as_long_as_its_record),
    # the order in line
    Guard("who was idle is not owed for it", "line", "if finish <= virtual then", "if false then", order.test_whoever_was_alone_for_long_is_not_punished_for_it),
    Guard("time goes on with what is claimed", "claim", "int(math.max(virtual, r.score - band * SPAN))", "int(virtual)", order.test_ten_thousand_jobs_of_one_tenant_delay_another_by_no_job_in_line, (100,)),
    Guard("idle tenants stand in order", "line", "redis.call('HSET', fair, band, int(virtual + 1))", "", order.test_idle_tenants_are_served_in_the_order_of_their_arrival),
    Guard("a job counts by its cost", "line", "finish + math.ceil(16 * r.cost / r.weight)", "finish + math.ceil(16 / r.weight)", order.test_tenants_that_always_wait_get_equal_parts_whatever_they_ask_for),
    Guard("a weight counts", "line", "finish + math.ceil(16 * r.cost / r.weight)", "finish + 16 * r.cost", order.test_a_weight_is_a_multiple_of_the_lanes),
    Guard("what was not used is given back", "line", "if tags[2] then", "if false then", order.test_what_was_not_used_is_given_back),
    Guard("old jobs get lanes", "claim", "% EVERY ~= 0 then", "% EVERY ~= 99 then", order.test_what_has_waited_long_gets_one_lane_of_ten_however_much_is_more_urgent, ("batch",)),
    Guard("only old jobs do", "claim", "'created') or t) > age", "'created') or t) >= 0", order.test_what_has_not_waited_long_does_not_pass_what_is_more_urgent),
    Guard("a long answer of one who was alone is no debt", "line", "finish > tonumber(tags[1] or 0)", "false", order.test_whoever_was_alone_with_long_answers_is_not_punished_either),
    Guard("answers are expected to be as its tenant's were", "line", "seen[1] or seen[2]", "seen[2]", order.test_equal_parts_are_parts_of_tokens_even_if_nobody_says_how_long_answers_will_be),
    Guard("a worker may have enough of old jobs", "claim", "not age or turn", "turn", order.test_a_worker_that_has_enough_of_them_takes_none_for_its_age),
    Guard("turns are kept while somebody waits", "reap", "redis.call('EXPIRE', K.fair .. model, DAY)", "", limits.test_the_turns_of_a_line_that_stands_for_days_are_kept),
    # limits
    Guard("less urgent jobs are in nobody's way", "submit", "int((o.band + 1) * SPAN)", "int(3 * SPAN)", limits.test_less_urgent_jobs_do_not_fill_the_line_of_more_urgent_ones),
    Guard("nor are their tokens", "submit", "for band = 0, o.band do", "for band = 0, 2 do", limits.test_less_urgent_jobs_do_not_fill_the_line_of_more_urgent_ones),
    Guard("a parked record that cannot be read stops nobody", "reap", "if not pcall(look_after, line) then", "if not look_after(line) and false then", limits.test_a_parked_record_that_cannot_be_read_stops_nobody),
    Guard("an end in line brings a parked job", "ends", "elseif leave_line(r) then\n    unpark(r)", "elseif leave_line(r) then", limits.test_an_end_in_line_brings_a_parked_job_too),
    Guard("a debt outlives five minutes", "submit", "redis.call('EXPIRE', rate, DAY)", "redis.call('EXPIRE', rate, 300)", limits.test_a_request_larger_than_a_minutes_tokens_needs_all_of_them_and_leaves_a_debt),
    Guard("a clock that went back costs nobody his rate", "submit", "math.max(0, t - tonumber(was[1] or t))", "t - tonumber(was[1] or t)", limits.test_a_request_larger_than_a_minutes_tokens_needs_all_of_them_and_leaves_a_debt),
    Guard("no rate, no debt", "submit", "if b[2] > 0 then", "if true then", limits.test_a_limit_that_was_none_so_far_begins_full),
    Guard("a share of lanes is a limit", "line", "return r.share > 0 and redis", "return false and redis", limits.test_beyond_its_share_of_lanes_a_tenants_jobs_wait_and_nobody_waits_for_them),
    Guard("the end of a job brings the next", "ends", "    unpark(r)\n    announce", "    announce", limits.test_beyond_its_share_of_lanes_a_tenants_jobs_wait_and_nobody_waits_for_them),
    Guard("what runs has a lease", "reap", "if not redis.call('ZSCORE', K.leases_, id) then", "if false then", limits.test_parked_jobs_whose_turn_redis_forgot_come_back_at_a_reap),
    Guard("a reaper looks at what is parked", "reap", "if not pcall(look_after, line) then", "if false then", limits.test_parked_jobs_whose_turn_redis_forgot_come_back_at_a_reap),
    Guard("counts of what is gone are forgotten", "reap", "redis.call('DEL', K.length .. model)", "", limits.test_a_count_of_records_that_are_gone_is_forgotten),
    Guard("tokens in line have a limit", "submit", "tokens + cost > o.max_tokens", "false", limits.test_a_line_is_bounded_in_tokens),
    Guard("an empty line takes any job", "submit", "tokens > 0 and tokens + cost", "tokens + cost", limits.test_a_line_is_bounded_in_tokens),
    Guard("a tenant's jobs in line have a limit", "submit", "mine >= most_mine", "false", limits.test_a_tenants_jobs_in_line_are_bounded),
    Guard("a rate is a limit", "submit", "levels[i] < math.min(need, most)", "false", limits.test_a_rate_of_requests_is_a_burst_and_then_so_many_a_minute),
    Guard("a rate is no more than a minute's", "submit", "math.min(b[2], tonumber(was", "math.max(0, tonumber(was", limits.test_a_rate_of_requests_is_a_burst_and_then_so_many_a_minute),
    Guard("a large request is not refused for ever", "submit", "levels[i] < math.min(need, most)", "levels[i] < need", limits.test_a_request_larger_than_a_minutes_tokens_needs_all_of_them_and_leaves_a_debt),
    Guard("a rate counts what was used", "line", "if redis.call('HEXISTS', K.rate .. r.tenant, 'tokens') == 1 then", "if false then", limits.test_a_rate_of_tokens_counts_what_was_used),
    # batch jobs yield
    Guard("nobody yields beside a free lane", "step", "ARGV[1] ~= '0' and ", "", yields.test_nobody_yields, ("a free lane",)),
    Guard("a free lane elsewhere has a moment", "step", "< WAIT_MS then return end", "< 0 then return end", yields.test_nobody_yields, ("just came",)),
    Guard("only batch jobs yield", "step", "band_of(r) == 2 and ", "", yields.test_nobody_yields, ("not batch",)),
    Guard("who was let in for its age stays", "step", " and r.firm == 0", "", yields.test_nobody_yields, ("aged",)),
    Guard("lanes on their way count", "step", "wanted <= tonumber(redis.call('GET', K.yielding .. model) or 0)", "false", yields.test_one_lane_after_the_other_and_no_more_than_are_wanted),
    Guard("lanes that fall free count", "ends", "    announce_lane(r.model)\n", "", yields.test_a_lane_that_falls_free_by_itself_is_on_its_way_too),
    Guard("nobody yields for nothing", "step", "if lacking > 0 then return end", "", yields.test_batch_jobs_that_make_no_room_together_stay),
    Guard("a lane that is taken is on its way no more", "claim", "redis.call('DECR', K.yielding .. model) <= 0", "false", yields.test_one_lane_after_the_other_and_no_more_than_are_wanted),
    Guard("a lane on its way is forgotten", "line", "redis.call('PEXPIRE', K.yielding .. model, 2000)", "", yields.test_a_lane_given_up_and_never_taken_is_forgotten),
    # watchers
    Guard("a reader that comes back saves the job", "attach", "redis.call('ZREM', K.orphans_, r.id)", "", watch.test_race_15_a_reader_that_comes_back_within_the_grace_saves_the_job),
    Guard("other readers save the job", "detach", "left == 0", "true", watch.test_race_15_a_client_that_leaves_cancels_its_job_at_once),
    Guard("a stored job needs no reader", "detach", " and r.store == 0", "", watch.test_stored_jobs_and_ended_jobs_are_never_orphans),
    Guard("an ended job needs no reader", "detach", " and not terminal(r.state)", "", watch.test_stored_jobs_and_ended_jobs_are_never_orphans),
    Guard("a dead process leaves stored jobs alone", "reap", " and r.store == 0", "", watch.test_race_15_a_dead_api_process_orphans_its_jobs_and_then_they_are_cancelled, (True,)),
    Guard("other readers outlive a dead process", "reap", " and redis.call('SCARD', K.watch .. id) == 0", "", watch.test_race_15_a_dead_api_process_orphans_its_jobs_and_then_they_are_cancelled, (True,)),
    Guard("a process that never reaped is missed too", "prelude", "redis.call('ZADD', K.apis_, 'NX', int(t + term), api)", "", watch.test_race_15_a_dead_api_process_orphans_its_jobs_and_then_they_are_cancelled, (False,)),
    # nothing stays for ever
    Guard("logs end", "ends", "redis.call('EXPIRE', K.log .. r.id, r.keep)", "", watch.test_when_all_jobs_have_ended_every_key_left_has_a_ttl_or_is_documented),
    Guard("records end", "ends", "redis.call('EXPIRE', K.job .. r.id, r.keep + 3600)", "", watch.test_when_all_jobs_have_ended_every_key_left_has_a_ttl_or_is_documented),
    Guard("watches end", "ends", "redis.call('EXPIRE', K.watch .. r.id, r.keep)", "", watch.test_a_reader_who_leaves_a_trace_on_an_ended_job_is_cleared_with_its_process),
]  # fmt: skip


@pytest.fixture
def guardless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Guard:
    """The scripts without one guard."""
    guard: Guard = request.param
    original = lua.source
    body = (files("tasks") / "scripts" / f"{guard.script}.lua").read_text()
    assert body.count(guard.text) == 1, f"{guard.text!r} occurs {body.count(guard.text)} times in {guard.script}.lua"
    monkeypatch.setattr(
        lua, "source", lambda name: original(name).replace(body, body.replace(guard.text, guard.without))
    )
    return guard


@pytest.mark.parametrize("guardless", GUARDS, ids=[guard.name for guard in GUARDS], indirect=True)
def test_without_the_guard_a_test_fails(guardless: Guard, rigs: Callable[..., Rig], redis_url: str) -> None:
    own_settings = "rigs" in inspect.signature(guardless.test).parameters
    world = rigs if own_settings else rigs()
    with redis.Redis.from_url(redis_url) as client:
        for name in lua.NAMES:
            client.script_load(lua.source(name))  # it still compiles: the test fails for want of the guard only
    with pytest.raises((AssertionError, PenstockError, ValueError, pytest.fail.Exception)):
        guardless.test(world, *guardless.args)
