-- What exports are found by. Apart from the change of the table, which nobody may read beside: an index is made while all is read.

set local statement_timeout = 0;

create index object_export on object (workspace_id, export_id, id) where kind = 3;
-- Live sessions in the order in which they are exported: all others of a workspace are tombstones, which are many more in the end.
create index session_live on session (workspace_id, id) where state = 0;
create index receipt_of_workspace on receipt (workspace_id, deletion_id, part);
