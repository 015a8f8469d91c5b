package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// DailyCount is how many orders of a card product and a batch came to each point on a
// day. An order is counted once for each, on the day when it first came there; one that
// was told of a later point only came to those before it on the same day.
type DailyCount struct {
	Day           int // of the report, from 0
	CardProductID string
	BatchID       *uuid.UUID // nil for orders that came by themselves

	Accepted  int64 // here; what was imported is not among them
	Submitted int64 // D1 has it
	Produced  int64
	Shipped   int64
	Failed    int64
	Cancelled int64
	Open      int64 // of those accepted that day, those that have not ended by now
}

// A report reads far more than a list: a day may have a million orders. So there is one
// at a time in each process, and it may take longer than other statements.
const reportTimeout = 30 * time.Second

// maxReportRows bounds a report: more than a month of some hundred products and batches
// a day.
const maxReportRows = 20_000

// The statuses of orders that came to a point. Once there, an order never goes back
// before it, but for CANCELLED, which is before and behind: events tell by the status
// before. Those of an import tell what happened elsewhere.
var (
	notAtD1  = []order.Status{order.Accepted, order.Held, order.OutcomeUnknown, order.Rejected}
	wasTaken = []order.Status{
		order.Submitted, order.DataPrepared, order.Ready, order.OnHold, order.InProduction, order.Exception, order.Failed,
		order.Produced, order.Shipped, order.Delivered, order.Returned,
	}
	wasMade    = []order.Status{order.Produced, order.Shipped, order.Delivered, order.Returned}
	wasShipped = []order.Status{order.Shipped, order.Delivered, order.Returned}
)

// dailyReport reads the events of its days, which lie together, before anything else:
// that is what OFFSET 0 is for. Most events are of steps that nobody counts.
const dailyReport = `
	SELECT e.day, o.card_product_id, o.batch_id,
		count(*) FILTER (WHERE e.accepted), count(*) FILTER (WHERE e.submitted), count(*) FILTER (WHERE e.produced),
		count(*) FILTER (WHERE e.shipped), count(*) FILTER (WHERE e.failed), count(*) FILTER (WHERE e.cancelled),
		count(*) FILTER (WHERE e.accepted AND s.order_id IS NOT NULL)
	FROM (
		SELECT e.issuer_id, e.order_id, width_bucket(e.created_at, $2::timestamptz[]) - 1 AS day, e.type = $4 AS accepted,
			e.status = ANY ($6) AND (e.previous_status = ANY ($5) OR e.previous_status = $10 AND NOT EXISTS (SELECT FROM order_events f
				WHERE f.issuer_id = e.issuer_id AND f.order_id = e.order_id AND f.seq < e.seq AND f.status = ANY ($6))) AS submitted,
			e.status = ANY ($7) AND e.previous_status <> ALL ($7) AS produced,
			e.status = ANY ($8) AND e.previous_status <> ALL ($8) AS shipped,
			e.status = $9 AND NOT EXISTS (SELECT FROM order_events f
				WHERE f.issuer_id = e.issuer_id AND f.order_id = e.order_id AND f.seq < e.seq AND f.status = $9) AS failed,
			e.status = $10 AND NOT EXISTS (SELECT FROM order_events f
				WHERE f.issuer_id = e.issuer_id AND f.order_id = e.order_id AND f.seq < e.seq AND f.status = $10) AS cancelled
		FROM order_events e
		WHERE e.issuer_id = $1 AND e.created_at >= ($2::timestamptz[])[1] AND e.created_at < $3 AND e.type <> $11
			AND (e.type = $4 OR e.status IN ($9, $10) OR e.previous_status = ANY ($5 || $10::text)
				OR e.status = ANY ($7) AND e.previous_status <> ALL ($7) OR e.status = ANY ($8) AND e.previous_status <> ALL ($8))
		OFFSET 0
	) e
		JOIN orders o ON o.issuer_id = e.issuer_id AND o.id = e.order_id
		LEFT JOIN order_state s ON s.issuer_id = e.issuer_id AND s.order_id = e.order_id AND s.ended_at IS NULL AND e.accepted
	WHERE e.accepted OR e.submitted OR e.produced OR e.shipped OR e.failed OR e.cancelled
	GROUP BY 1, 2, 3
	ORDER BY 1, 2, 3 NULLS FIRST
	LIMIT $12`

// reportSettings let the statement take its time, and are for few lines of many events:
// sorting the events, or compiling the statement, takes longer than all the rest.
const reportSettings = `SELECT set_config('statement_timeout', '35s', true), set_config('jit', 'off', true),
	set_config('enable_sort', 'off', true), set_config('work_mem', '64MB', true)`

// DailyReport counts what happened to an issuer's orders on days that begin at the given
// times, one after the other, until end. The error is ErrTooSlow when that is too much.
func (s *Store) DailyReport(ctx context.Context, issuer string, days []time.Time, end time.Time) ([]DailyCount, error) {
	select {
	case s.reports <- struct{}{}:
		defer func() { <-s.reports }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	short, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	var counts []DailyCount
	var b pgx.Batch
	exec(&b, reportSettings) // for the transaction that a batch is
	b.Queue(dailyReport, issuer, days, end, EventAccepted, notAtD1, wasTaken, wasMade, wasShipped,
		order.Failed, order.Cancelled, EventImported, maxReportRows+1).Query(func(rows pgx.Rows) (err error) {
		counts, err = pgx.CollectRows(rows, pgx.RowToStructByPos[DailyCount])
		return err
	})
	err = conn.SendBatch(short, &b).Close()
	switch {
	case err != nil && ctx.Err() == nil && short.Err() != nil, len(counts) > maxReportRows:
		return nil, ErrTooSlow
	case err != nil:
		return nil, fmt.Errorf("counting what happened: %w", err)
	}
	return counts, nil
}
