"""Every Redis key of Penstock: the one place that names them.

key                      type    content                                          written by         ends
penstock:job:<id>        HASH    the job's record (fields: tasks/jobs.py)          scripts            retention + 1 h after its end
penstock:log:<id>        STREAM  <fence>-<seq> → e=<entry JSON>                    scripts            retention after its end
penstock:watch:<id>      SET     API processes that relay this job                attach, detach     retention after its end
penstock:watched:<api>   SET     jobs that this API process relays                attach, detach     with the API process
penstock:idem:<tenant>:<key>  STRING  <job id> <body hash>                        submit             with the record
penstock:jobs:<tenant>   ZSET    job → created (ms): the list of submitted jobs   submit             30 days after the last submit
penstock:waiting:<model> ZSET    job → score (band, then start tag): the line     scripts            empty when nobody waits
penstock:parked:<model>:<tenant>  ZSET  job → score: those beyond the tenant's share of lanes  scripts  empty when nobody waits
penstock:active:<model>:<tenant>  SET   running jobs of a tenant that has such a share  scripts         empty when nothing runs
penstock:fair:<model>    HASH    virtual time of each band, finish tags of tenants scripts           1 day after the last job
penstock:length:<model>  HASH    what waits: tokens, jobs, jobs of each tenant    scripts            empty when nobody waits
penstock:yielding:<model> STRING lanes that batch jobs just gave up               scripts            2 s
penstock:rate:<tenant>   HASH    the token buckets of its rate limits             submit, scripts    5 min after the last submit
penstock.<model>         LIST    tickets, Celery's queue                          scripts, Celery    empty once a worker took them
penstock:leases          ZSET    running job → expiry (ms, Redis' clock)          claim, renew       empty when nothing runs
penstock:orphans         ZSET    unwatched job → when to cancel it (ms)           detach, reap       empty when nothing runs
penstock:deadlines       ZSET    unfinished job → deadline (ms)                   submit             empty when nothing runs
penstock:apis            ZSET    API process → expiry (ms)                        attach, reap       permanent
penstock:workers         ZSET    worker → expiry (ms)                             heartbeat, reap    permanent
penstock:worker:<name>   STRING  the worker's card (JSON)                         heartbeat          seconds after its death
penstock:draining:<name> STRING  set while a worker drains                        drain              1 h
penstock:profile:<model> HASH    tokenizer, template, limits of a loaded model    worker             permanent
penstock:pace:<model>    HASH    moving averages of jobs: time on a lane, answer  scripts            1 day after the last job
penstock:models          SET     models that ever had a job                       submit             permanent
penstock:parks           SET     <model>:<tenant> with parked jobs                scripts            empty when nobody waits
penstock:tickets         STRING  counter behind the ticket ids                    scripts            permanent
penstock:tick            STRING  when a reaper last ran (ms)                      reap               permanent
penstock:relay:<api>     channel entries for that API process, as they are logged scripts            -

`<fence>-<seq>`: see tasks/events.py. The scripts get these names as a generated Lua table, so they are typed once.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "penstock:"

#: Families: the identifier is appended to the value.
FAMILIES: Final = {
    name: f"{PREFIX}{name}:"
    for name in (
        "job",
        "log",
        "watch",
        "watched",
        "idem",
        "jobs",
        "waiting",
        "parked",
        "active",
        "fair",
        "length",
        "yielding",
        "rate",
        "worker",
        "draining",
        "profile",
        "pace",
        "relay",
    )
} | {"queue": "penstock."}

#: Single keys.
SINGLES: Final = {
    name: f"{PREFIX}{name}"
    for name in ("leases", "orphans", "deadlines", "apis", "workers", "models", "parks", "tickets", "tick")
}

#: Keys without a TTL that stay when nothing runs any more.
PERMANENT: Final = ("apis", "workers", "profile", "models", "tickets", "tick")


def key(family: str, identifier: str) -> str:
    """The key of one member of a family, as in `key("job", job_id)`."""
    return FAMILIES[family] + identifier


def single(name: str) -> str:
    """The name of a single key, as in `single("leases")`."""
    return SINGLES[name]


def queue_of(model: str) -> str:
    """The Celery queue that holds a model's tickets."""
    return key("queue", model)


def lua_table() -> str:
    """All names as a Lua table `K`, put before every script."""
    rows = ", ".join(
        f"{name} = '{value}'" for name, value in (FAMILIES | {f"{n}_": v for n, v in SINGLES.items()}).items()
    )
    return f"local K = {{{rows}}}\n"
