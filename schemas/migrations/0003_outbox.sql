-- What has to be told on the topic `control` stands here from the transaction that decided it until Kafka has it.
create table outbox (
    id bigint generated always as identity primary key,
    topic_key text not null,
    value bytea not null,
    created_at timestamptz not null default now()
);
