package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// waiting is a stored notification that is to be tried again.
type waiting struct {
	id            int64
	issuer        string
	digest        []byte
	raw           []byte
	correlationID string
}

// parser reads the bytes of a stored notification; one that it cannot read has no Raw.
type parser = func(issuer string, raw []byte, correlationID string) Notification

func (w *waiting) arrival(parse parser) *arrival {
	n := parse(w.issuer, w.raw, w.correlationID)
	return &arrival{Notification: &n, digest: w.digest, id: w.id, unread: len(n.Raw) == 0}
}

// sweepBatch is how many notifications one sweep tries.
const sweepBatch = 100

// Sweep tries notifications again that found no order or could not be applied:
// those with the given ids, or, without ids, those that are due. parse reads the
// bytes that were stored. It returns how many were applied, and whether there may
// be more.
func (s *Store) Sweep(ctx context.Context, ids []int64, parse parser) (applied int, more bool, err error) {
	list, err := s.due(ctx, ids)
	if err != nil {
		return 0, false, err
	}
	byIssuer := make(map[string][]*arrival)
	for i := range list {
		byIssuer[list[i].issuer] = append(byIssuer[list[i].issuer], list[i].arrival(parse))
	}
	var failed []error
	for issuer, list := range byIssuer {
		n, err := s.sweepIssuer(ctx, issuer, list)
		applied += n
		if err != nil {
			failed = append(failed, err)
		}
		if Away(err) { // it is none of these that makes trouble
			break
		}
	}
	if len(failed) > 0 {
		return applied, false, fmt.Errorf("applying waiting notifications: %w", errors.Join(failed...))
	}
	return applied, len(ids) == 0 && len(list) == sweepBatch, nil
}

// sweepIssuer applies waiting notifications of an issuer, but for those that another
// replica has: all together, or else each by itself.
func (s *Store) sweepIssuer(ctx context.Context, issuer string, list []*arrival) (applied int, err error) {
	err = s.applyStored(ctx, &receiving{store: s, issuer: issuer, list: list, stored: true})
	if Away(err) {
		return 0, err
	}
	var failed []error
	if err != nil {
		for _, n := range list {
			n.outcome = ""
			err := s.applyAlone(ctx, issuer, n)
			if Away(err) {
				return applied, err
			}
			if err != nil {
				failed = append(failed, err)
				s.postpone(ctx, n.id)
			}
		}
	}
	for _, n := range list {
		if n.outcome == OutcomeApplied {
			applied++
		}
	}
	return applied, errors.Join(failed...)
}

// postpone keeps a notification that makes trouble from being the first again.
func (s *Store) postpone(ctx context.Context, id int64) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, `UPDATE notifications SET tries = tries + 1, next_try_at = now() + interval '1 min'
		WHERE id = $1 AND outcome IN ('parked', 'unapplied')`, id)
	if err != nil {
		s.cfg.Log.Error("a notification could not be postponed", "notificationId", id, "error", err)
	}
}

func (s *Store) due(ctx context.Context, ids []int64) ([]waiting, error) {
	if len(ids) > 0 {
		return s.storedNotifications(ctx, `n.outcome IN ('parked', 'unapplied') AND n.id = ANY ($1) ORDER BY n.id`, ids)
	}
	return s.storedNotifications(ctx, `n.outcome IN ('parked', 'unapplied') AND n.next_try_at <= now() ORDER BY n.next_try_at LIMIT `+strconv.Itoa(sweepBatch))
}

// storedNotifications reads notifications with their bytes.
func (s *Store) storedNotifications(ctx context.Context, condition string, args ...any) ([]waiting, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	return s.readStored(ctx, s.pool, condition, args...)
}

// querier is the pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (s *Store) readStored(ctx context.Context, q querier, condition string, args ...any) ([]waiting, error) {
	rows, err := q.Query(ctx, `SELECT n.id, n.issuer_id, n.digest, n.body, coalesce(n.correlation_id, '') FROM notifications n WHERE `+condition, args...)
	if err != nil {
		return nil, fmt.Errorf("looking for stored notifications: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (waiting, error) {
		var w waiting
		var body []byte
		if err := row.Scan(&w.id, &w.issuer, &w.digest, &body, &w.correlationID); err != nil {
			return w, err
		}
		raw, err := s.cfg.Seal.open(body, columnNotification, w.issuer, string(w.digest))
		if err != nil {
			// It waits on as empty; its age raises the alarm.
			s.cfg.Log.Error("a stored notification cannot be opened", "notificationId", w.id, "error", err)
		}
		w.raw = raw
		return w, nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading stored notifications: %w", err)
	}
	return list, nil
}

// keepIgnored is how long notifications are kept that say nothing of an order.
const keepIgnored = 7 * 24 * time.Hour

// ForgetIgnored deletes some notifications that are not about orders and have been kept
// long enough, and tells whether there may be more.
func (s *Store) ForgetIgnored(ctx context.Context) (more bool, err error) {
	const step = 1000
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	deleted, err := s.pool.Exec(ctx, `
		DELETE FROM notifications WHERE id IN (SELECT id FROM notifications
			WHERE outcome = 'ignored' AND created_at < now() - $1::interval ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`, keepIgnored, step)
	if err != nil {
		return false, fmt.Errorf("deleting notifications that are about no order: %w", err)
	}
	return deleted.RowsAffected() == step, nil
}
