-- Who read what, and lists that cost the same whatever is asked for.

-- What is here may take longer than any other statement: indexes over all sessions.
set local statement_timeout = 0;

-- Who read which session when (the read-access audit). A row is committed before the answer that it tells of begins. Ids and
-- times only: it stays when the session goes, and tells nothing of an end user.
create table session_read (
    workspace_id uuid not null,
    id uuid not null,
    session_id uuid not null,
    read_at timestamptz not null default clock_timestamp(),
    -- Whose key was shown.
    api_key_id uuid not null,
    what text not null check (what in ('metadata', 'events', 'export')),
    -- Which part of the events was asked for, in milliseconds by the client's clock. Null on the side that was left open.
    ts_from bigint,
    ts_to bigint,
    primary key (workspace_id, read_at, id)
);
create index session_read_by_session on session_read (workspace_id, session_id, read_at, id);
create index session_read_by_key on session_read (workspace_id, api_key_id, read_at, id);
create index session_read_by_both on session_read (workspace_id, session_id, api_key_id, read_at, id);

-- The table is only ever appended to. An entry may go when it is older than 400 days, by the server's clock and no other, or
-- when its workspace is gone: there is no switch that opens it.
create function clairvio.keep_session_reads() returns trigger
language plpgsql as $$
begin
    if tg_op = 'DELETE' and tg_level = 'ROW' and (
        old.read_at < now() - interval '400 days'
        or not exists (select from workspace w where w.id = old.workspace_id)
    ) then
        return old;
    end if;
    raise exception 'session_read is only appended to' using
        errcode = 'insufficient_privilege',
        hint = 'entries may be deleted once they are older than 400 days, or their workspace is gone';
end
$$;
create trigger session_read_rows before update or delete on session_read
    for each row execute function clairvio.keep_session_reads();
create trigger session_read_whole before truncate on session_read
    for each statement execute function clairvio.keep_session_reads();
-- Also for whoever replicates into it.
alter table session_read enable always trigger session_read_rows, enable always trigger session_read_whole;

-- Rare sessions have lists of their own in the order of all lists. Which one a list is read along: storage's index::sessions.
create index session_errors on session (workspace_id, started_at desc, id desc) where state = 0 and errors > 0;
create index session_open_newest on session (workspace_id, started_at desc, id desc)
    where state = 0 and not end_seen and not final;
create index session_minute on session (workspace_id, started_at desc, id desc)
    where state = 0 and ts_max - ts_min >= 60000;
create index session_ten_minutes on session (workspace_id, started_at desc, id desc)
    where state = 0 and ts_max - ts_min >= 600000;
create index session_hour on session (workspace_id, started_at desc, id desc)
    where state = 0 and ts_max - ts_min >= 3600000;
drop index session_link;
create index session_link on session (workspace_id, link_id, started_at desc, id desc);

-- Sessions by the pages in their `urls`: an index, made of rows because it is asked for what texts begin with. It has what
-- `urls` has, whoever writes that, and loses what a tombstone loses in the same transaction.
create table session_page (
    workspace_id uuid not null,
    -- By bytes, so that a beginning is a range.
    url text collate "C" not null,
    started_at timestamptz not null,
    session_id uuid not null,
    primary key (workspace_id, url, started_at, session_id)
);

create function clairvio.follow_pages() returns trigger
language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        delete from session_page p
        where p.workspace_id = old.workspace_id and p.url = any (old.urls) and p.started_at = old.started_at
            and p.session_id = old.id
            and (tg_op = 'DELETE' or not (p.url = any (new.urls) and p.started_at = new.started_at));
    end if;
    if tg_op <> 'DELETE' then
        insert into session_page (workspace_id, url, started_at, session_id)
        select new.workspace_id, page.url, new.started_at, new.id from unnest(new.urls) as page (url)
        on conflict do nothing;
    end if;
    return null;
end
$$;
create trigger session_pages_new after insert on session
    for each row when (new.urls <> '{}') execute function clairvio.follow_pages();
create trigger session_pages_changed after update of urls, started_at on session
    for each row when (old.urls <> new.urls or (old.started_at <> new.started_at and new.urls <> '{}'))
    execute function clairvio.follow_pages();
create trigger session_pages_gone after delete on session
    for each row when (old.urls <> '{}') execute function clairvio.follow_pages();

insert into session_page (workspace_id, url, started_at, session_id)
select distinct s.workspace_id, page.url, s.started_at, s.id
from session s cross join lateral unnest(s.urls) as page (url)
on conflict do nothing;

-- Quarantine objects are listed also when chunks of sessions are all that they hold.
drop index object_quarantined;
create index object_quarantined on object (coalesce(set_aside_at, live_at), id)
    where kind <> 1 and state = 1 and (kind = 2 or quarantined is null or quarantined > 0);
