package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// CauseRule is a rule of the program that held an order back.
const CauseRule CauseKind = "rule"

// ruleDetail is what the timeline tells of the rule.
type ruleDetail struct {
	MaxOrders int `json:"maxOrdersPerConsumerPerDay"`
}

// applicant is a claimed message whose order the program's rule looks at.
type applicant struct {
	claim
	index    int // in the caller's list
	key      orderKey
	consumer string
	limit    int
}

// Admit applies the rule of the programs that limits the orders of a consumer in a day to
// messages of an issuer that were just claimed, and returns those that may be sent. The
// others are held, which ends their messages. Orders that may have left before, and those
// that were admitted before, pass.
//
// It is decided under a lock of the consumer: whoever claims the consumer's other orders
// meanwhile waits, and then counts these. Counted is what has left, or may have, within 24
// hours, and what was admitted and is still to leave. When it fails nothing may be sent.
func (s *Store) Admit(ctx context.Context, issuer string, messages []Message) ([]Message, error) {
	var limits map[string]int
	if s.cfg.ConsumerLimits != nil {
		limits = s.cfg.ConsumerLimits(issuer)
	}
	if len(limits) == 0 {
		return messages, nil
	}
	applicants, err := s.applicants(ctx, limits, messages)
	if err != nil {
		return nil, fmt.Errorf("looking for the consumers of orders: %w", err)
	}
	if len(applicants) == 0 {
		return messages, nil
	}
	var held map[int]bool
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		held, locked, err = s.admit(ctx, tx, issuer, applicants)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counting the orders of consumers: %w", err)
	}
	s.logChanges(ctx, locked)
	if len(held) == 0 {
		return messages, nil
	}
	var rest []Message
	for i := range messages {
		if !held[i] {
			rest = append(rest, messages[i])
		}
	}
	return rest, nil
}

// applicants finds those of the messages that the rule is about, in the order in which the
// orders came.
func (s *Store) applicants(ctx context.Context, limits map[string]int, messages []Message) ([]applicant, error) {
	byClaim := make(map[claim]int, len(messages))
	var candidates []claim
	for i := range messages {
		if m := &messages[i]; m.Kind == KindSubmit && !m.MaybeSent && !m.SentBefore && !m.Halted {
			c := m.claim()
			byClaim[c], candidates = i, append(candidates, c)
		}
	}
	if len(candidates) == 0 {
		return nil, nil
	}
	ids, tokens := claimColumns(candidates)
	rows, err := s.pool.Query(ctx, `
		SELECT m.id, m.claim_token, o.consumer_id, o.card_product_id
		FROM unnest($1::bigint[], $2::uuid[]) AS t(id, token)
			JOIN outbox m ON m.id = t.id AND m.claim_token = t.token AND m.admitted_at IS NULL
			JOIN orders o ON o.issuer_id = m.issuer_id AND o.id = m.order_id`, ids, tokens)
	if err != nil {
		return nil, err
	}
	var list []applicant
	var a applicant
	var product string
	_, err = pgx.ForEachRow(rows, []any{&a.id, &a.token, &a.consumer, &product}, func() error {
		if a.limit = limits[product]; a.limit > 0 {
			a.index = byClaim[a.claim]
			a.key = messages[a.index].key()
			list = append(list, a)
		}
		return nil
	})
	slices.SortFunc(list, func(x, y applicant) int { return cmp.Compare(x.id, y.id) })
	return list, err
}

// admit decides about applicants, and returns the indexes of those that are held.
func (s *Store) admit(ctx context.Context, tx pgx.Tx, issuer string, applicants []applicant) (map[int]bool, map[orderKey]*lockedOrder, error) {
	consumers := make([]string, 0, len(applicants))
	keys, claims := make([]orderKey, len(applicants)), make([]claim, len(applicants))
	for i, a := range applicants {
		consumers = append(consumers, a.consumer)
		keys[i], claims[i] = a.key, a.claim
	}
	slices.Sort(consumers)
	consumers = slices.Compact(consumers)
	// Sorted, so that two transactions never wait for each other's consumers; and before all
	// other locks.
	_, err := tx.Exec(ctx, `
		SELECT pg_advisory_xact_lock(k) FROM (
			SELECT DISTINCT hashtextextended($1 || '|' || c, $3) AS k FROM unnest($2::text[]) c ORDER BY k) sorted`,
		issuer, consumers, consumerLocks)
	if err != nil {
		return nil, nil, fmt.Errorf("locking consumers: %w", err)
	}
	locked, err := lockOrders(ctx, tx, keys)
	if err != nil {
		return nil, nil, err
	}
	owned := make(map[claim]heldMessage, len(claims))
	counts := make(map[string]int, len(consumers))
	var ask pgx.Batch
	queueClaimLocks(&ask, claims, owned)
	queueConsumerCounts(&ask, issuer, consumers, counts)
	if err := send(ctx, tx, &ask); err != nil {
		return nil, nil, err
	}
	w := advances{store: s}
	held := make(map[int]bool)
	var admitted []int64
	for _, a := range applicants {
		o := locked[a.key]
		if m, mine := owned[a.claim]; o == nil || !mine || m.halt != "" || !o.state.ToBeSent() {
			continue // whoever sends it finds that out
		}
		if counts[a.consumer] < a.limit {
			counts[a.consumer]++
			admitted = append(admitted, a.id)
			continue
		}
		detail, err := json.Marshal(ruleDetail{a.limit})
		if err != nil {
			return nil, nil, fmt.Errorf("writing the detail of a rule: %w", err)
		}
		o.submit, held[a.index] = a.id, true
		w.advance(o, Cause{Kind: CauseRule, Detail: detail}, order.Hold{Reason: order.HeldByRule})
	}
	var b pgx.Batch
	if len(admitted) > 0 {
		exec(&b, `UPDATE outbox SET admitted_at = now() WHERE id = ANY ($1)`, admitted)
	}
	w.queue(&b)
	return held, locked, send(ctx, tx, &b)
}

// consumerLocks keeps the locks of consumers apart from all others that are named by a
// hash.
const consumerLocks = 1

// queueConsumerCounts queues the counting of what consumers were sent, or will be. An order
// whose notification came before D1's answer was stored has left too.
func queueConsumerCounts(b *pgx.Batch, issuer string, consumers []string, counts map[string]int) {
	b.Queue(`
		SELECT t.consumer_id, n.count FROM unnest($2::text[]) AS t(consumer_id) CROSS JOIN LATERAL (
			SELECT count(*) AS count FROM orders o
				JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				LEFT JOIN outbox m ON m.issuer_id = o.issuer_id AND m.order_id = o.id AND m.kind = 'submit'
			WHERE o.issuer_id = $1 AND o.consumer_id = t.consumer_id AND NOT o.imported
				AND (coalesce(s.first_sent_at, CASE WHEN s.rank > 0 THEN s.status_since END) > now() - interval '24 h'
					OR m.admitted_at IS NOT NULL AND (m.first_sent_at IS NULL OR m.first_sent_at > now() - interval '24 h'))) n`,
		issuer, consumers).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var consumer string
			var n int
			err := rows.Scan(&consumer, &n)
			counts[consumer] = n
			return err
		})
	})
}
