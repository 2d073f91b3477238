-- Plan windows that become shorter do so after a grace, and what is past its window is found by workspace.

set local statement_timeout = 0;

-- A look at all rows, while others go on with theirs.
alter table object validate constraint object_of_session;

alter table workspace
    -- Until then sessions are kept as long as by the plan before,
    add column kept_until timestamptz,
    -- which was so long.
    add column kept_window interval,
    add constraint kept_until_how_long check ((kept_until is null) = (kept_window is null));

-- How long sessions of a workspace are kept right now.
create function clairvio.kept_for(w workspace) returns interval
language sql stable as $$
    select case when w.kept_until > clairvio.clock() then greatest(w.kept_window, clairvio.retention(w.plan))
        else clairvio.retention(w.plan) end
$$;

-- When a session of a workspace is past its window, as its plan is now.
create function clairvio.expires_at(w workspace, started_at timestamptz) returns timestamptz
language sql stable as $$
    select greatest(started_at + clairvio.retention(w.plan), least(started_at + w.kept_window, w.kept_until))
$$;
