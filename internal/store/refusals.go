package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// A refusal that need not be the order's own fault sets its message aside: only the next
// answer tells whether the order or the set-up is wrong. Another order accepted: the
// orders set aside are rejected. So many different ones refused, with none accepted
// between: the lane stops, and they go back untouched.

// laneNews is what the storing of completions learns about a lane.
type laneNews struct {
	stoppedAt *time.Time // of a stopped lane
	setAside  []int64    // messages that are set aside: all, if they are few
	oldest    *time.Time // when the first of them was refused

	acceptance *Completion // the one that was claimed last
	refusals   []*Completion
}

// maxSetAside bounds how many messages are counted, and settled in one transaction.
const maxSetAside = 500

func (n *laneNews) stopped() bool { return n.stoppedAt != nil }

func (n *laneNews) accepted(c *Completion) {
	if n.acceptance == nil || c.Message.ClaimedAt.After(n.acceptance.Message.ClaimedAt) {
		n.acceptance = c
	}
}

func (n *laneNews) refused(c *Completion) { n.refusals = append(n.refusals, c) }

// settles tells whether an acceptance decides about anything: it proves nothing about
// what was refused after its call had been claimed.
func (n *laneNews) settles() bool {
	if n.acceptance == nil {
		return false
	}
	at := n.acceptance.Message.ClaimedAt
	return n.stopped() && !n.stoppedAt.After(at) || n.oldest != nil && !n.oldest.After(at)
}

// stops tells whether different orders were refused so often that the set-up must be
// wrong, and what the last of them was told.
func (n *laneNews) stops() (last *Completion, stop bool) {
	if n.stopped() || n.acceptance != nil || len(n.refusals) == 0 {
		return nil, false
	}
	different := make(map[int64]bool)
	for _, id := range n.setAside {
		different[id] = true
	}
	for _, c := range n.refusals {
		different[c.Message.ID] = true
		last = c
	}
	return last, last.Next.StopAfter > 0 && len(different) >= last.Next.StopAfter
}

// queueLaneNews queues the reading of what is known of lanes. As long as nothing is
// refused that costs a look at an empty index.
func queueLaneNews(b *pgx.Batch, lanes map[string]*laneNews) {
	names := make([]string, 0, len(lanes))
	for name := range lanes {
		names = append(names, name)
	}
	b.Queue(`
		SELECT t.lane, l.stopped_at, r.ids, r.oldest
		FROM unnest($1::text[]) AS t(lane)
			LEFT JOIN lanes l ON l.lane = t.lane
			CROSS JOIN LATERAL (SELECT array_agg(a.id) AS ids, min(a.refused_at) AS oldest
				FROM (SELECT m.id, m.refused_at FROM outbox m
					WHERE m.lane = t.lane AND m.refused_at IS NOT NULL ORDER BY m.refused_at LIMIT $2) a) r`,
		names, maxSetAside).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var name string
			var n laneNews
			if err := rows.Scan(&name, &n.stoppedAt, &n.setAside, &n.oldest); err != nil {
				return err
			}
			*lanes[name] = n
			return nil
		})
	})
}

// judgeLanes does what follows from acceptances and refusals for other orders, in
// transactions of their own, since orders are locked in one order. What fails is only
// late: the next answer leads to it again.
func (c *completing) judgeLanes(ctx context.Context) {
	for lane, news := range c.lanes {
		if news.settles() {
			if err := c.store.settleRefusals(ctx, lane, news.acceptance); err != nil {
				c.store.cfg.Log.Error("what was refused could not be settled", "lane", lane, "error", err)
			}
		}
		if last, stop := news.stops(); stop {
			if err := c.store.stopLane(ctx, lane, last); err != nil {
				c.store.cfg.Log.Error("a lane could not be stopped", "lane", lane, "error", err)
			}
		}
	}
}

// firstProbe is how soon an order is tried after a lane stopped.
const firstProbe = time.Second

// stopLane stops a lane, and has the orders that were refused tried again as if they had
// not been.
func (s *Store) stopLane(ctx context.Context, lane string, last *Completion) error {
	reason := last.Attempt.Reason
	if last.Attempt.HTTPStatus != 0 {
		answer := strings.TrimSpace(fmt.Sprintf("%d %s", last.Attempt.HTTPStatus, last.Attempt.ErrorCode))
		reason = fmt.Sprintf("%s (%s)", reason, answer)
	}
	var stopped bool
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		// Counted again, since an acceptance may have come in between.
		tag, err := tx.Exec(ctx, `
			INSERT INTO lanes (lane, stopped_at, stop_reason, probe_at) SELECT $1, now(), $2, now() + $3::interval
			WHERE $4 <= (SELECT count(*) FROM (SELECT FROM outbox m WHERE m.lane = $1 AND m.refused_at IS NOT NULL ORDER BY m.refused_at LIMIT $4) a)
			ON CONFLICT (lane) DO UPDATE SET stopped_at = EXCLUDED.stopped_at, stop_reason = EXCLUDED.stop_reason,
				probe_at = EXCLUDED.probe_at, probes = 0, updated_at = now()
			WHERE lanes.stopped_at IS NULL`,
			lane, reason, firstProbe, last.Next.StopAfter)
		if err != nil {
			return err
		}
		if stopped = tag.RowsAffected() > 0; !stopped {
			return nil
		}
		if err := tellOfLane(ctx, tx, lane); err != nil {
			return err
		}
		return s.letGo(ctx, tx, lane, nil)
	})
	if err != nil {
		return fmt.Errorf("stopping a lane: %w", err)
	}
	if stopped {
		s.cfg.Log.Error("the lane stopped: different orders were refused as if the set-up were wrong", "lane", lane, "reason", reason)
	}
	return nil
}

// letGo has messages that were set aside tried again as if they had not been refused:
// all that nobody holds, or those refused until a given time. What was given up stays so.
func (s *Store) letGo(ctx context.Context, tx pgx.Tx, lane string, until *time.Time) error {
	_, err := tx.Exec(ctx, `
		UPDATE outbox m SET refused_at = NULL, refused_since = NULL, reject_after = NULL, tries = 0,
			run_at = CASE WHEN m.run_at < 'infinity' THEN now() ELSE m.run_at END
		WHERE m.id = ANY (ARRAY(SELECT e.id FROM outbox e
			WHERE e.lane = $1 AND e.refused_at IS NOT NULL AND ($2::timestamptz IS NULL OR e.refused_at <= $2)
				AND e.claim_token IS NULL
			ORDER BY e.id FOR UPDATE))`, lane, until)
	return err
}

// settleRefusals does what an acceptance means for the other orders of its lane.
func (s *Store) settleRefusals(ctx context.Context, lane string, acceptance *Completion) error {
	claimedAt := acceptance.Message.ClaimedAt
	ended := false
	for more := true; more; {
		var locked map[orderKey]*lockedOrder
		err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
			tag, err := tx.Exec(ctx, `
				UPDATE lanes SET stopped_at = NULL, stop_reason = NULL, probe_at = NULL, probes = 0, updated_at = now()
				WHERE lane = $1 AND stopped_at <= $2`, lane, claimedAt)
			if err != nil {
				return err
			}
			if tag.RowsAffected() > 0 {
				// While the set-up was wrong no refusal proved anything.
				ended, more, locked = true, false, nil
				if err := tellOfLane(ctx, tx, lane); err != nil {
					return err
				}
				return s.letGo(ctx, tx, lane, &claimedAt)
			}
			locked, more, err = s.rejectSetAside(ctx, tx, lane, acceptance)
			return err
		})
		if err != nil {
			return fmt.Errorf("settling what was refused: %w", err)
		}
		s.logChanges(ctx, locked)
	}
	if ended {
		s.cfg.Log.Info("the lane runs again: D1 accepted an order", "lane", lane)
	}
	s.cfg.OnReady(lane)
	return nil
}

// rejectSetAside rejects orders that D1 refused before it accepted another one. Those
// whose refusal does not prove anything yet are tried on, and no longer count.
func (s *Store) rejectSetAside(ctx context.Context, tx pgx.Tx, lane string, acceptance *Completion) (locked map[orderKey]*lockedOrder, more bool, err error) {
	claimedAt := acceptance.Message.ClaimedAt
	type candidate struct {
		ID      int64
		Issuer  string
		OrderID uuid.UUID
	}
	rows, err := tx.Query(ctx, `
		SELECT m.id, m.issuer_id, m.order_id FROM outbox m
		WHERE m.lane = $1 AND m.refused_at <= $2 ORDER BY m.refused_at LIMIT $3`, lane, claimedAt, maxSetAside)
	if err != nil {
		return nil, false, err
	}
	candidates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil || len(candidates) == 0 {
		return nil, false, err
	}
	keys, ids := make([]orderKey, len(candidates)), make([]int64, len(candidates))
	byID := make(map[int64]orderKey, len(candidates))
	for i, m := range candidates {
		keys[i], ids[i] = orderKey{m.Issuer, m.OrderID}, m.ID
		byID[m.ID] = keys[i]
	}
	if locked, err = lockOrders(ctx, tx, keys); err != nil {
		return nil, false, err
	}
	rows, err = tx.Query(ctx, `
		SELECT m.id, m.claim_token IS NULL AND m.maybe_sent_at IS NULL AND m.refused_since + coalesce(m.reject_after, '0') <= $2
		FROM outbox m WHERE m.id = ANY ($1) AND m.refused_at <= $2 ORDER BY m.id FOR UPDATE`, ids, claimedAt)
	if err != nil {
		return nil, false, err
	}
	w := advances{store: s}
	var tried []int64
	var id int64
	var proven bool
	_, err = pgx.ForEachRow(rows, []any{&id, &proven}, func() error {
		o := locked[byID[id]]
		if proven && o != nil {
			w.advance(o, Cause{Kind: CauseAttempt, ID: acceptance.Attempt.ID.String()}, order.Refusal{})
		}
		if !proven || o == nil || o.state.Waiting() {
			tried = append(tried, id)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	var b pgx.Batch
	w.queue(&b)
	if len(tried) > 0 {
		exec(&b, `UPDATE outbox SET refused_at = NULL WHERE id = ANY ($1)`, tried)
	}
	return locked, len(candidates) == maxSetAside, send(ctx, tx, &b)
}
