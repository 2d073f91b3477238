-- The last record that was published of a partition: a topic that was deleted and made anew is told by it. Null until the
-- first publishing.
alter table partition_progress
    add column last_offset bigint,
    -- The 64 bits of the hash, as a signed number.
    add column last_fingerprint bigint,
    add constraint fingerprint_of_an_offset check ((last_offset is null) = (last_fingerprint is null));
