-- Objects are sealed: footers of shared and quarantine objects under a version of the keyring, and deletions destroy keys.

alter table object
    -- Which version of the keyring opens the footer of a shared or quarantine object.
    add column key_version integer;

alter table deletion_session
    -- When the session's key was destroyed in the key store.
    add column shredded_at timestamptz;

create index deletion_session_unshredded on deletion_session (deletion_id, session_id) where shredded_at is null;
