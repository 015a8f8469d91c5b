package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// LaneState is what holds for a lane on all replicas. The zero value is a lane that
// nobody paused and nothing stopped.
type LaneState struct {
	Lane        string
	PausedAt    time.Time // zero when it is not paused
	PausedBy    string
	PauseReason string
	// StoppedAt is since when nothing but probes is sent: different orders were
	// refused as if the set-up were wrong. Zero when it is not stopped.
	StoppedAt  time.Time
	StopReason string
	ProbeAt    time.Time // when the next order is tried
	// Resumes is how often a person resumed the lane: when it grows, every process
	// gives its breakers another try.
	Resumes int
}

// laneColumns are the columns of lanes that make a LaneState, in the order of scanLane.
const laneColumns = `l.lane, l.paused_at, coalesce(l.paused_by, ''), coalesce(l.pause_reason, ''),
	l.stopped_at, coalesce(l.stop_reason, ''), l.probe_at, l.resumes`

func scanLane(row pgx.CollectableRow) (LaneState, error) {
	var l LaneState
	var paused, stopped, probe *time.Time
	err := row.Scan(&l.Lane, &paused, &l.PausedBy, &l.PauseReason, &stopped, &l.StopReason, &probe, &l.Resumes)
	for _, t := range []struct {
		to   *time.Time
		from *time.Time
	}{{&l.PausedAt, paused}, {&l.StoppedAt, stopped}, {&l.ProbeAt, probe}} {
		if t.from != nil {
			*t.to = *t.from
		}
	}
	return l, err
}

// PauseLane stops a lane for all replicas until it is resumed: no claim that begins
// after the commit takes anything. Calls under way end. Pausing a paused lane changes
// nothing.
func (s *Store) PauseLane(ctx context.Context, lane, actor, reason string) (LaneState, error) {
	l, err := s.changeLane(ctx, lane, `
		INSERT INTO lanes AS l (lane, paused_at, paused_by, pause_reason) VALUES ($1, now(), $2, $3)
		ON CONFLICT (lane) DO UPDATE SET paused_at = EXCLUDED.paused_at, paused_by = EXCLUDED.paused_by,
			pause_reason = EXCLUDED.pause_reason, updated_at = now()
		WHERE l.paused_at IS NULL`, lane, actor, reason)
	if err != nil {
		return l, fmt.Errorf("pausing a lane: %w", err)
	}
	s.cfg.Log.Warn("a lane was paused", "lane", lane, "by", l.PausedBy)
	return l, nil
}

// ResumeLane ends a pause, makes the next probe of a stopped lane due now, and
// lets every process try its breakers.
func (s *Store) ResumeLane(ctx context.Context, lane, actor string) (LaneState, error) {
	l, err := s.changeLane(ctx, lane, `
		INSERT INTO lanes AS l (lane, resumes) VALUES ($1, 1)
		ON CONFLICT (lane) DO UPDATE SET paused_at = NULL, paused_by = NULL, pause_reason = NULL,
			probe_at = CASE WHEN l.stopped_at IS NOT NULL THEN now() END, resumes = l.resumes + 1, updated_at = now()`, lane)
	if err != nil {
		return l, fmt.Errorf("resuming a lane: %w", err)
	}
	s.cfg.Log.Info("a lane was resumed", "lane", lane, "by", actor)
	return l, nil
}

// changeLane changes a lane's row, tells every process of it with the commit, and
// returns what then holds.
func (s *Store) changeLane(ctx context.Context, lane, sql string, args ...any) (LaneState, error) {
	var l LaneState
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		var b pgx.Batch
		exec(&b, sql, args...)
		exec(&b, `SELECT pg_notify($1, $2)`, channel, announcement{lane: lane}.String())
		b.Queue(`SELECT `+laneColumns+` FROM lanes l WHERE l.lane = $1`, lane).Query(func(rows pgx.Rows) (err error) {
			l, err = pgx.CollectExactlyOneRow(rows, scanLane)
			return err
		})
		return send(ctx, tx, &b)
	})
	return l, err
}

// tellOfLane tells every process with the commit that a lane's row was changed: what
// they have claimed ahead of a lane that stopped is not to be sent.
func tellOfLane(ctx context.Context, tx pgx.Tx, lane string) error {
	_, err := tx.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, announcement{lane: lane}.String())
	return err
}

// Lanes returns the state of lanes by name. A lane without a row is not in it.
func (s *Store) Lanes(ctx context.Context) (map[string]LaneState, error) {
	var lanes map[string]LaneState
	rows, err := s.pool.Query(ctx, selectLanes)
	if err == nil {
		lanes, err = collectLanes(rows)
	}
	if err != nil {
		return nil, fmt.Errorf("reading lanes: %w", err)
	}
	return lanes, nil
}

const selectLanes = `SELECT ` + laneColumns + ` FROM lanes l`

func collectLanes(rows pgx.Rows) (map[string]LaneState, error) {
	list, err := pgx.CollectRows(rows, scanLane)
	lanes := make(map[string]LaneState, len(list))
	for _, l := range list {
		lanes[l.Lane] = l
	}
	return lanes, err
}
