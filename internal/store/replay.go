package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ErrNoNotification is returned for a notification that is not stored.
var ErrNoNotification = errors.New("no such notification")

// Replayed is what became of a notification that was applied again.
type Replayed struct {
	ID      int64
	Outcome Outcome
	OrderID uuid.UUID // nil without one
}

// Replay applies a stored notification again by what is known today, whatever became of
// it before. One that its order has heard changes nothing, unless the rules by which it
// is read have.
func (s *Store) Replay(ctx context.Context, issuer string, id int64, parse parser) (Replayed, error) {
	list, err := s.storedNotifications(ctx, `n.issuer_id = $1 AND n.id = $2`, issuer, id)
	if err != nil {
		return Replayed{}, err
	}
	if len(list) == 0 {
		return Replayed{}, ErrNoNotification
	}
	n := list[0].arrival(parse)
	if err := s.replay(ctx, issuer, []*arrival{n}); err != nil {
		return Replayed{}, err
	}
	done := Replayed{ID: id, Outcome: n.outcome}
	if n.outcome == OutcomeApplied || n.outcome == OutcomeUnapplied || n.outcome == OutcomeRepeated {
		done.OrderID = n.order.id
	}
	return done, nil
}

// ReplayRange is the notifications that came in a time.
type ReplayRange struct {
	From, To time.Time
	Outcome  Outcome // "" for all
	After    int64   // those with a greater id
}

const (
	// replayStep is how many notifications are applied again in one transaction, and
	// replayMost how many in a call.
	replayStep = 100
	replayMost = 2000
	// replayReach is how many ids a step goes through at most: few of them may be looked for.
	replayReach = 5000
	// replayWithin is after how long a call begins no further step.
	replayWithin = 5 * time.Second
	// replaySkew is by how much a notification may have come before one with a smaller id:
	// a transaction that takes an id writes it within this time.
	replaySkew = time.Minute
)

// ReplayRange applies notifications again, in the order in which they came. It returns
// how many became what, and the id after which to go on, 0 when there are no more.
func (s *Store) ReplayRange(ctx context.Context, issuer string, in ReplayRange, parse parser) (counts map[Outcome]int, next int64, err error) {
	counts = make(map[Outcome]int)
	begun := time.Now()
	after, last, err := s.idsOf(ctx, in)
	if err != nil {
		return counts, 0, err
	}
	for done := 0; after < last && done < replayMost && time.Since(begun) <= replayWithin; {
		list, reached, err := s.notificationsOf(ctx, issuer, in, after, last)
		if err != nil {
			return counts, after, err
		}
		arrivals := make([]*arrival, len(list))
		for i := range list {
			arrivals[i] = list[i].arrival(parse)
		}
		if err := s.replay(ctx, issuer, arrivals); err != nil {
			return counts, after, err
		}
		for _, n := range arrivals {
			if n.outcome != "" { // it is gone, as after it was merged
				counts[n.outcome]++
			}
		}
		after, done = reached, done+len(list)
	}
	if after >= last {
		return counts, 0, nil
	}
	return counts, after, nil
}

// idsOf finds between which ids the notifications of a range are: those that are left of
// it are greater than after, and not greater than last. Ids ascend with the time, but for
// a little skew: halving finds them in some fifty look-ups, however many there are.
func (s *Store) idsOf(ctx context.Context, in ReplayRange) (after, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		var begin, end int64
		var b pgx.Batch
		exec(&b, steadyPlans)
		exec(&b, sortOff)
		b.Queue(`SELECT coalesce(min(id), 1), coalesce(max(id), 0) + 1 FROM notifications`).QueryRow(func(row pgx.Row) error {
			return row.Scan(&begin, &end)
		})
		if err := send(ctx, tx, &b); err != nil {
			return err
		}
		begin = max(begin, min(in.After, end)+1)
		first, err := firstSince(ctx, tx, begin, end, in.From.Add(-replaySkew))
		if err != nil {
			return err
		}
		beyond, err := firstSince(ctx, tx, first, end, in.To.Add(replaySkew))
		after, last = first-1, beyond-1
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("looking for where a time begins and ends among the notifications: %w", err)
	}
	return after, last, nil
}

// firstSince finds from which id on, between two, notifications came at a time or later.
func firstSince(ctx context.Context, tx pgx.Tx, begin, end int64, at time.Time) (int64, error) {
	for begin < end {
		middle := begin + (end-begin)/2
		var since bool
		err := tx.QueryRow(ctx, `SELECT coalesce((SELECT created_at >= $2 FROM notifications WHERE id >= $1 ORDER BY id LIMIT 1), true)`,
			middle, at).Scan(&since)
		if err != nil {
			return 0, err
		}
		if since {
			end = middle
		} else {
			begin = middle + 1
		}
	}
	return begin, nil
}

// notificationsOf reads the next notifications of a range, after an id and up to another
// one, and tells up to which it has read all.
func (s *Store) notificationsOf(ctx context.Context, issuer string, in ReplayRange, after, last int64) (list []waiting, reached int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	reached = min(last, after+replayReach)
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		var b pgx.Batch
		exec(&b, steadyPlans)
		exec(&b, sortOff)
		if err := send(ctx, tx, &b); err != nil {
			return err
		}
		list, err = s.readStored(ctx, tx, `n.id > $1 AND n.id <= $2 AND n.issuer_id = $3
			AND n.created_at >= $4 AND n.created_at < $5 AND ($6 = '' OR n.outcome = $6) ORDER BY n.id LIMIT $7`,
			after, reached, issuer, in.From, in.To, in.Outcome, replayStep)
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("looking for notifications of a time: %w", err)
	}
	if len(list) == replayStep {
		reached = list[replayStep-1].id
	}
	return list, reached, nil
}

// replay applies stored notifications again: all together, or else each by itself.
func (s *Store) replay(ctx context.Context, issuer string, list []*arrival) error {
	again := func(list []*arrival, broken bool) error {
		return s.applyStored(ctx, &receiving{store: s, issuer: issuer, list: list, stored: true, replay: true, broken: broken})
	}
	err := again(list, false)
	if err == nil || Away(err) {
		return err
	}
	for _, n := range list {
		n.outcome = ""
		err := err
		if len(list) > 1 {
			err = again([]*arrival{n}, false)
		}
		if err == nil {
			continue
		}
		if Unavailable(err) || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Error("a notification could not be applied", "issuerId", issuer, "notificationId", n.id, "orderId", n.order.id, "error", err)
		if err := again([]*arrival{n}, true); err != nil {
			return err
		}
	}
	return nil
}
