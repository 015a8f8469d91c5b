-- The release before knows no changes: it would take the message of one for an order that is
-- to be sent, and send that again. Its claims set no first_sent_at there, and fail instead.

-- +goose Up

ALTER TABLE outbox ADD CONSTRAINT outbox_change_claimed CHECK (kind <> 'change' OR claim_token IS NULL OR first_sent_at IS NOT NULL) NOT VALID;
