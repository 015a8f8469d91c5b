package store

import (
	"context"
	"fmt"
	"time"
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
	OldestDue time.Duration // for how long the oldest has been due of those that wait for no earlier order of their card
}

// oldestDue says in SQL for how long a lane has left lying what it could send, of the
// class of b. It begins where a claim does, and passes as little.
func oldestDue(lane string) string {
	return `coalesce((SELECT now() - m.run_at FROM outbox m WHERE m.lane = ` + lane + ` AND m.class = b.class AND ` + due + ` AND ` + claimable + `
		ORDER BY m.run_at LIMIT 1), '0')`
}

// MaxBacklog is how far each number of a Backlog is counted. Screens may ask for it every
// second; how many there are beyond is in the metrics.
const MaxBacklog = 10_000

// Backlog counts what waits in a lane. Each count reads the entries of one index that
// it counts, and no more of them than MaxBacklog: in the order of the index, or the
// whole table would be read for a class that is empty.
func (s *Store) Backlog(ctx context.Context, lane string) (*Backlog, error) {
	view := &Backlog{}
	rows, err := s.pool.Query(ctx, `
		SELECT b.class,
			(SELECT count(*) FROM (SELECT FROM outbox m WHERE lane = $1 AND class = b.class AND `+due+` ORDER BY run_at LIMIT $3) m),
			(SELECT count(*) FROM (SELECT FROM outbox m WHERE lane = $1 AND class = b.class ORDER BY run_at LIMIT $3) m),
			`+oldestDue("$1")+`,
			(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = b.class AND run_at = 'infinity' ORDER BY run_at LIMIT $3) m)
		FROM unnest($2::smallint[]) b (class) ORDER BY b.class`, lane, Classes, MaxBacklog)
	if err == nil {
		err = each(rows, func() error {
			var c ClassBacklog
			var givenUp int
			err := rows.Scan(&c.Class, &c.Due, &c.Messages, &c.OldestDue, &givenUp)
			view.Classes = append(view.Classes, c)
			view.GivenUp = min(view.GivenUp+givenUp, MaxBacklog)
			return err
		})
	}
	if err == nil {
		// Only questions are looked through for what is unknown: what was sent before
		// and is to be sent again is known not to be there.
		err = s.pool.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND class = $2 AND maybe_sent_at IS NOT NULL ORDER BY run_at LIMIT $3) m),
				(SELECT count(*) FROM (SELECT FROM outbox WHERE lane = $1 AND refused_at IS NOT NULL LIMIT $3) m)`,
			lane, ClassQuestion, MaxBacklog).Scan(&view.Unknown, &view.Refused)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the backlog of a lane: %w", err)
	}
	return view, nil
}
