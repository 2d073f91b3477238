-- How many sessions are how long: without that a list of the long ones may be planned along all sessions.
set local statement_timeout = 0;

create statistics session_duration on (ts_max - ts_min) from session;
-- Otherwise the numbers would come with the next analysis, which may be days away. It reads a sample, whatever there is.
analyze session;

-- Old entries of the audit are found by their age; they lie in its order.
create index session_read_age on session_read using brin (read_at);

-- What these ask is asked of the tables here, and of none that a caller made for himself under the same name.
alter function clairvio.keep_session_reads() set search_path = pg_catalog, public, pg_temp;
alter function clairvio.follow_pages() set search_path = pg_catalog, public, pg_temp;
