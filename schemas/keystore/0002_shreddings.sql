-- How often keys were destroyed here. The index notes it: a key store that counts less than the index heard of was restored from a
-- backup, and has keys that were destroyed.
create table shreddings (
    single boolean primary key default true check (single),
    count bigint not null
);
insert into shreddings (count) values (0);
