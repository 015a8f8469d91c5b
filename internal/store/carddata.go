package store

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// keyIDOf is the kid of a compact JWE, "" when there is none to be read. It is read for
// every order: a header as all write it is not decoded as a whole.
func keyIDOf(jwe string) string {
	encoded, _, _ := strings.Cut(jwe, ".")
	var room [512]byte
	header, err := base64.RawURLEncoding.AppendDecode(room[:0], []byte(encoded))
	if err != nil {
		return ""
	}
	const member = `"kid":"`
	if at := bytes.Index(header, []byte(member)); at >= 0 && bytes.Count(header, []byte(`"kid"`)) == 1 {
		depth := bytes.Count(header[:at], []byte("{")) - bytes.Count(header[:at], []byte("}"))
		value := header[at+len(member):]
		end := bytes.IndexByte(value, '"')
		if depth == 1 && end >= 0 && !bytes.ContainsAny(header, "\\\x00") {
			return string(value[:end])
		}
	}
	var whole struct {
		KeyID string `json:"kid"`
	}
	if json.Unmarshal(header, &whole) != nil || strings.ContainsRune(whole.KeyID, 0) {
		return ""
	}
	return whole.KeyID
}

// Bounds of one step of the search for orders that need other card data: how many open
// orders it looks at, and how many it marks.
const (
	cardDataLook = 20000
	cardDataMark = 500
)

// MarkCardDataNeeded marks the orders of an issuer that are still to be brought to D1 and
// whose card data was encrypted under a key that is not in use any more, and returns how
// many. It looks at open orders only, step by step, and is meant to be called when the keys
// in use have changed: no order is accepted with another one.
func (s *Store) MarkCardDataNeeded(ctx context.Context, issuer string, inUse []string) (int, error) {
	marked := 0
	var after uuid.UUID
	for more := true; more; {
		var locked map[orderKey]*lockedOrder
		last, n := after, 0
		err := s.inShortTx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
			last, more, n, locked, err = s.markCardData(ctx, tx, issuer, inUse, after)
			return err
		})
		if err != nil {
			return marked, fmt.Errorf("looking for orders that need other card data: %w", err)
		}
		s.logChanges(ctx, locked)
		after = last
		marked += n
	}
	return marked, nil
}

// markCardData does one step after an order: it returns how far it came, and whether there
// may be more.
func (s *Store) markCardData(ctx context.Context, tx pgx.Tx, issuer string, inUse []string, after uuid.UUID) (
	last uuid.UUID, more bool, marked int, locked map[orderKey]*lockedOrder, err error,
) {
	keys, last, more, err := s.findCardData(ctx, tx, issuer, inUse, after)
	if err != nil || len(keys) == 0 {
		return last, more, 0, nil, err
	}
	if locked, err = lockOrders(ctx, tx, keys); err != nil {
		return last, more, 0, nil, err
	}
	w := advances{store: s}
	for _, o := range locked {
		if len(o.operations) == 0 && (o.state.Waiting() || o.state.Status == order.Rejected) {
			w.advance(o, Cause{Kind: CauseTime}, order.Notice{Attention: order.AttentionCardDataNeeded})
		}
	}
	marked = len(w.events)
	var b pgx.Batch
	w.queue(&b)
	return last, more, marked, locked, send(ctx, tx, &b)
}

// findCardData finds orders whose key is not in use. Which key that is was not written down
// by earlier releases: it is then found out, and written.
func (s *Store) findCardData(ctx context.Context, tx pgx.Tx, issuer string, inUse []string, after uuid.UUID) (
	keys []orderKey, last uuid.UUID, more bool, err error,
) {
	rows, err := tx.Query(ctx, `
		WITH looked AS MATERIALIZED (
			SELECT s.issuer_id, s.order_id, s.status, s.attention, s.acknowledged FROM order_state s
			WHERE s.issuer_id = $1 AND s.ended_at IS NULL AND s.order_id > $2 ORDER BY s.order_id LIMIT $4
		), found AS (
			SELECT l.order_id, p.key_id, CASE WHEN p.key_id IS NULL THEN p.encrypted_data END AS encrypted_data
			FROM looked l JOIN order_payload p ON p.issuer_id = l.issuer_id AND p.order_id = l.order_id
			WHERE l.status IN ('ACCEPTED', 'HELD', 'OUTCOME_UNKNOWN', 'REJECTED')
				AND NOT (l.attention || l.acknowledged) @> ARRAY[$6::text]
				AND (p.key_id IS NULL OR p.key_id <> '' AND p.key_id <> ALL ($3::text[]))
			ORDER BY l.order_id LIMIT $5
		)
		SELECT f.order_id, f.key_id, f.encrypted_data, false FROM found f
		UNION ALL SELECT order_id, NULL, NULL, true FROM (SELECT order_id FROM looked ORDER BY order_id OFFSET $4 - 1) l
		ORDER BY 1`, issuer, after, inUse, cardDataLook, cardDataMark, order.AttentionCardDataNeeded)
	if err != nil {
		return nil, after, false, err
	}
	var id uuid.UUID
	var keyID *string
	var sealed []byte
	var end bool
	var unknown []uuid.UUID
	var found []string
	last = after
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&id, &keyID, &sealed, &end}, func() error {
		switch {
		case end:
			if n < cardDataMark {
				last, more = id, true
			}
			return nil
		case keyID == nil:
			jwe, err := s.cfg.Seal.open(sealed, columnEncryptedData, issuer, id.String())
			if err != nil {
				s.cfg.Log.Error("the card data of an order cannot be opened", "orderId", id, "error", err)
			}
			kid := keyIDOf(string(jwe))
			keyID = &kid
			unknown, found = append(unknown, id), append(found, kid)
		}
		if n++; n == cardDataMark {
			last, more = id, true
		}
		if *keyID != "" && !slices.Contains(inUse, *keyID) {
			keys = append(keys, orderKey{issuer, id})
		}
		return nil
	})
	if err != nil {
		return nil, after, false, err
	}
	if len(unknown) > 0 {
		_, err = tx.Exec(ctx, `
			UPDATE order_payload p SET key_id = t.key_id FROM unnest($2::uuid[], $3::text[]) AS t(order_id, key_id)
			WHERE p.issuer_id = $1 AND p.order_id = t.order_id AND p.key_id IS NULL`, issuer, unknown, found)
	}
	return keys, last, more, err
}
