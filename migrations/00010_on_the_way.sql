-- Where the card is: what D1 and the carrier tell, when an order is late, and what is
-- done about it while the card is on its way.
-- Adding columns with constant defaults touches no row; indexes are in files of their
-- own.

-- +goose Up

ALTER TABLE orders
    ADD COLUMN not_before timestamptz,                 -- not to be sent earlier
    ADD COLUMN imported   boolean NOT NULL DEFAULT false; -- placed by an older system, never sent from here

ALTER TABLE order_state
    ADD COLUMN hold         text,                                -- why it is HELD
    ADD COLUMN status_since timestamptz NOT NULL DEFAULT now(),  -- since when it has its status
    ADD COLUMN heard_at     timestamptz,                         -- when D1 last said something of it
    ADD COLUMN due_at       timestamptz,                         -- by when it should have arrived
    ADD COLUMN late         boolean NOT NULL DEFAULT false,
    ADD COLUMN acknowledged text[]  NOT NULL DEFAULT '{}',       -- attentions that a person has dealt with
    ADD COLUMN parcels      text[]  NOT NULL DEFAULT '{}';       -- what the carrier says of each tracking number

ALTER TABLE outbox
    ADD COLUMN change_id   uuid,        -- of kind change: what is to be changed
    ADD COLUMN admitted_at timestamptz; -- when the program's limits let the order pass

-- Changes of an order that is under way (D1: pull & change).
CREATE TABLE order_changes (
    issuer_id    text        NOT NULL,
    id           uuid        NOT NULL,
    order_id     uuid        NOT NULL,
    key          text,                 -- the Idempotency-Key; null for one that follows from another request
    content_hash bytea,                -- keyed hash of what idempotency compares
    type         text        NOT NULL, -- CANCEL, ACCELERATE, REDIRECT, ACCELERATE_AND_REDIRECT
    state        text        NOT NULL, -- REQUESTED, SENT, ACCEPTED, REFUSED, EXPIRED
    reason       text,                 -- of the state, of a closed set
    address      bytea,                -- the new one, sealed
    operation_id text,                 -- D1's
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by   text        NOT NULL,
    sent_at      timestamptz,          -- the last moment at which D1 may have got it
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,          -- when no answer means that there will be none
    PRIMARY KEY (issuer_id, id)
);
CREATE UNIQUE INDEX order_changes_key ON order_changes (issuer_id, key) WHERE key IS NOT NULL;
CREATE INDEX order_changes_order ON order_changes (issuer_id, order_id, id);
CREATE INDEX order_changes_operation ON order_changes (issuer_id, operation_id) WHERE operation_id IS NOT NULL;
CREATE INDEX order_changes_open ON order_changes (expires_at) WHERE state IN ('REQUESTED', 'SENT');
ALTER TABLE order_changes ALTER COLUMN address SET STORAGE EXTERNAL;

-- What people wrote about an order.
CREATE TABLE order_notes (
    issuer_id  text        NOT NULL,
    order_id   uuid        NOT NULL,
    id         uuid        NOT NULL,
    body       bytea       NOT NULL, -- sealed: it may name people
    author     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (issuer_id, order_id, id)
);
