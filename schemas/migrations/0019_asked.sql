-- What somebody asked to have deleted does not wait for what is past its window, or a closed workspace's: those may be millions.

set local statement_timeout = 0;

create index deletion_asked on deletion (id)
    where erased_at is null and cause not in ('expired', 'terminated');

-- A session's row is written several times on its way out: with room on its page no index is.
alter table deletion_session set (fillfactor = 70);
