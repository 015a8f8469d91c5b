package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Backlog is what waits in one lane.
type Backlog struct {
	Classes []ClassBacklog // all of them, also the empty ones
	Unknown int            // orders of which it is unknown whether D1 has them
	Refused int            // messages set aside after a refusal
	GivenUp int            // messages that are not tried any more
}

// ClassBacklog is the part of a class in it.
type ClassBacklog struct {
	Class     Class
	Messages  int           // all: claimed, waiting and given up ones included
	Due       int           // those that could be claimed now
	OldestDue time.Duration // for how long the oldest of those has been due
}

// MaxBacklog is how far each number of a Backlog is counted. People look at it often,
// and whether it is a hundred thousand or a million they can read from the metrics.
const MaxBacklog = 100_000

// Backlog counts what waits in a lane. Each count reads the entries of one index that
// it counts, and no more of them than MaxBacklog.
func (s *Store) Backlog(ctx context.Context, lane string) (*Backlog, error) {
	view := &Backlog{}
	var b pgx.Batch
	exec(&b, steadyPlans)
	b.Queue(`
		SELECT c.class,
			(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = c.class LIMIT $3) m),
			(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = c.class AND run_at <= now() LIMIT $3) m),
			coalesce((SELECT now() - run_at FROM outbox WHERE lane = $1 AND class = c.class AND run_at <= now() ORDER BY run_at LIMIT 1), '0'),
			(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = c.class AND run_at = 'infinity' LIMIT $3) m)
		FROM unnest($2::smallint[]) c (class) ORDER BY c.class`, lane, Classes, MaxBacklog).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var c ClassBacklog
			var givenUp int
			err := rows.Scan(&c.Class, &c.Messages, &c.Due, &c.OldestDue, &givenUp)
			view.Classes = append(view.Classes, c)
			view.GivenUp = min(view.GivenUp+givenUp, MaxBacklog)
			return err
		})
	})
	// Only questions are looked through for what is unknown: what was sent before
	// and is to be sent again is known not to be there.
	b.Queue(`
		SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = $2 AND maybe_sent_at IS NOT NULL LIMIT $3) m),
			(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND refused_at IS NOT NULL LIMIT $3) m)`,
		lane, ClassQuestion, MaxBacklog).QueryRow(func(row pgx.Row) error { return row.Scan(&view.Unknown, &view.Refused) })
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("reading the backlog of a lane: %w", err)
	}
	return view, nil
}
