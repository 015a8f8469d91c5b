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
	// replaySteps how many such there are in a call.
	replayStep  = 100
	replaySteps = 20
	// replayWithin is after how long a call begins no further step.
	replayWithin = 5 * time.Second
)

// ReplayRange applies notifications again, in the order in which they came. It returns
// how many became what, and the id after which to go on, 0 when there are no more.
func (s *Store) ReplayRange(ctx context.Context, issuer string, in ReplayRange, parse parser) (counts map[Outcome]int, next int64, err error) {
	counts = make(map[Outcome]int)
	begun := time.Now()
	for range replaySteps {
		list, err := s.notificationsOf(ctx, issuer, in)
		if err != nil {
			return counts, 0, err
		}
		if len(list) == 0 {
			return counts, 0, nil
		}
		arrivals := make([]*arrival, len(list))
		for i := range list {
			arrivals[i] = list[i].arrival(parse)
		}
		if err := s.replay(ctx, issuer, arrivals); err != nil {
			return counts, in.After, err
		}
		for _, n := range arrivals {
			if n.outcome != "" { // it is gone, as after it was merged
				counts[n.outcome]++
			}
		}
		if in.After = list[len(list)-1].id; len(list) < replayStep {
			return counts, 0, nil
		}
		if time.Since(begun) > replayWithin {
			break
		}
	}
	return counts, in.After, nil
}

// notificationsOf reads the next notifications of a range. Those of a time lie side by
// side: a small index says where, and from there on they are read by their ids.
func (s *Store) notificationsOf(ctx context.Context, issuer string, in ReplayRange) (list []waiting, err error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'off', true)`); err != nil {
			return err
		}
		var first, last, n int64
		err := tx.QueryRow(ctx, `SELECT coalesce(min(id), 0), coalesce(max(id), 0), count(*) FROM notifications
			WHERE created_at >= $1 AND created_at < $2`, in.From, in.To).Scan(&first, &last, &n)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT set_config('enable_indexscan', 'on', true), set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)`); err != nil {
			return err
		}
		list, err = s.readStored(ctx, tx, `n.id >= $1 AND n.id > $2 AND n.id <= $3 AND n.issuer_id = $4
			AND n.created_at >= $5 AND n.created_at < $6 AND ($7 = '' OR n.outcome = $7) ORDER BY n.id LIMIT $8`,
			first, in.After, last, issuer, in.From, in.To, in.Outcome, replayStep)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for notifications of a time: %w", err)
	}
	return list, nil
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
