package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// ImportOutcome is what became of one order of an import.
type ImportOutcome struct {
	Known  bool         // it was here before, and stays as it is
	Faults order.Faults // why it was refused
}

// imported is an order of an import on its way into the tables.
type imported struct {
	order.Import
	id      uuid.UUID
	terms   string
	outcome *ImportOutcome
}

// Import takes orders over that an older system placed at D1, so that D1's notifications
// find them. Nothing is ever sent for them; they hold their cards while they are open.
// What is here already stays as it is, so that an import may be repeated. A dry run
// leaves nothing behind.
func (s *Store) Import(ctx context.Context, issuer, actor string, list []order.Import, dryRun bool) ([]ImportOutcome, error) {
	outcomes := make([]ImportOutcome, len(list))
	rows := make([]*imported, len(list))
	for i := range list {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making an order id: %w", err)
		}
		terms, err := json.Marshal(order.Terms{Services: order.Services{Issuance: list[i].Issuance}})
		if err != nil {
			return nil, fmt.Errorf("writing the terms of an order: %w", err)
		}
		rows[i] = &imported{Import: list[i], id: id, terms: string(terms), outcome: &outcomes[i]}
		if rows[i].IssuerRequestID == "" {
			rows[i].IssuerRequestID = id.String() // as for every order without one
		}
	}
	var err error
	for try := 0; try < maxRounds; try++ {
		err = s.inTx(ctx, func(tx pgx.Tx) error {
			clear(outcomes)
			// Tables that fill have no statistics that could be relied on.
			if _, err := tx.Exec(ctx, steadyPlans); err != nil {
				return err
			}
			if err := s.importIn(ctx, tx, issuer, actor, rows); err != nil {
				return err
			}
			if dryRun {
				return errRehearsed
			}
			return nil
		})
		if !errors.Is(err, errOvertaken) {
			break
		}
	}
	if err != nil && !errors.Is(err, errRehearsed) {
		return nil, fmt.Errorf("importing orders: %w", err)
	}
	if !dryRun {
		err = s.wakeParked(ctx, issuer, rows)
	} else {
		err = nil
	}
	return outcomes, err
}

// errOvertaken tells that somebody else stored the same order or operation meanwhile:
// the next look finds it.
var errOvertaken = errors.New("overtaken")

// importIn imports in rounds: what shares a key with an earlier one of the list waits
// until that one can be found.
func (s *Store) importIn(ctx context.Context, tx pgx.Tx, issuer, actor string, rows []*imported) error {
	for len(rows) > 0 {
		seen := make(map[[2]string]bool, 2*len(rows))
		var now, later []*imported
		for _, r := range rows {
			request, operation := [2]string{"request", r.IssuerRequestID}, [2]string{"operation", r.OperationID}
			if seen[request] || r.OperationID != "" && seen[operation] {
				later = append(later, r)
			} else {
				now = append(now, r)
			}
			seen[request], seen[operation] = true, true
		}
		fresh, err := findImported(ctx, tx, issuer, now)
		if err != nil {
			return err
		}
		if err := s.insertImported(ctx, tx, issuer, actor, fresh); err != nil {
			return err
		}
		rows = later
	}
	return nil
}

// findImported tells which orders are here already, or are not what is here, and
// returns the rest.
func findImported(ctx context.Context, tx pgx.Tx, issuer string, rows []*imported) ([]*imported, error) {
	requests, operations := make(texts, len(rows)), make(texts, len(rows))
	for i, r := range rows {
		requests[i], operations[i] = r.IssuerRequestID, r.OperationID
	}
	result, err := tx.Query(ctx, `
		SELECT t.i, a.id, coalesce(a.card_id, ''), b.id, coalesce(b.card_id, ''), coalesce(b.operation, '')
		FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS t(request, operation, i)
			LEFT JOIN LATERAL (
				SELECT o.id, o.card_id FROM orders o WHERE o.issuer_id = $1 AND o.issuer_request_id = t.request LIMIT 1) a ON true
			LEFT JOIN LATERAL (
				SELECT o.id, o.card_id, p.operation FROM operations p JOIN orders o ON o.issuer_id = p.issuer_id AND o.id = p.order_id
				WHERE p.issuer_id = $1 AND p.operation_id = t.operation LIMIT 1) b ON true
		WHERE a.id IS NOT NULL OR b.id IS NOT NULL`, issuer, requests, operations)
	if err != nil {
		return nil, fmt.Errorf("looking for imported orders: %w", err)
	}
	var i int
	var byRequest, byOperation *uuid.UUID
	var requestCard, operationCard, kind string
	there := make(map[*imported]bool)
	_, err = pgx.ForEachRow(result, []any{&i, &byRequest, &requestCard, &byOperation, &operationCard, &kind}, func() error {
		r := rows[i-1]
		there[r] = true
		refuse := func(pointer, detail string) {
			r.outcome.Faults = order.Faults{{Pointer: pointer, Code: string(ContentDiffers), Detail: detail}}
		}
		switch {
		case kind != "" && kind != OperationProduce:
			refuse("/operationId", "is an operation that makes no card")
		case byRequest != nil && byOperation != nil && *byRequest != *byOperation:
			refuse("/operationId", "is another order's than the issuerRequestId")
		case byRequest != nil && requestCard != r.CardID:
			refuse("/cardId", "is not the card of the order with this issuerRequestId")
		case byOperation != nil && operationCard != r.CardID:
			refuse("/cardId", "is not the card of the order with this operationId")
		default:
			r.outcome.Known = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for imported orders: %w", err)
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r *imported) bool { return there[r] }), nil
}

// neverSame is what idempotency compares of an imported order: nobody asked for it here,
// so no request is the same.
const neverSame = "imported"

// insertImported writes orders that D1 has, at the state that the older system knows.
func (s *Store) insertImported(ctx context.Context, tx pgx.Tx, issuer, actor string, rows []*imported) error {
	if len(rows) == 0 {
		return nil
	}
	// In the order in which all transactions come to these keys.
	slices.SortFunc(rows, func(x, y *imported) int {
		return bytes.Compare([]byte(x.IssuerRequestID), []byte(y.IssuerRequestID))
	})
	n := len(rows)
	ids, requests, operations := make(uuids, n), make(texts, n), make(texts, n)
	cards, consumers, products, channels, terms, ends := make(texts, n), make(texts, n), make(texts, n), make(texts, n), make(texts, n), make(texts, n)
	for i, r := range rows {
		ids[i], requests[i], operations[i], terms[i] = pgID(&r.id), r.IssuerRequestID, r.OperationID, r.terms
		cards[i], consumers[i], products[i], channels[i], ends[i] = r.CardID, r.ConsumerID, r.CardProductID, string(r.Channel), string(r.EndsAt)
	}
	var orders, named int
	var now time.Time
	err := tx.QueryRow(ctx, `
		WITH input AS MATERIALIZED (
			SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[])
				AS t(id, request, operation, card, consumer, product, channel, terms, ends_at)
		), new AS (
			INSERT INTO orders (issuer_id, id, issuer_request_id, card_id, consumer_id, card_product_id, distribution_channel, terms,
				urgent, warnings, content_hash, content_hash_version, created_by, imported)
			SELECT $1, id, request, card, consumer, product, channel, terms::jsonb, false, '{}', $11, $12, $13, true
			FROM input ORDER BY request
			ON CONFLICT DO NOTHING RETURNING id
		), state AS (
			INSERT INTO order_state (issuer_id, order_id, version, status, ends_at)
			SELECT $1, id, 0, $14, ends_at FROM input
		), operation AS (
			INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
			SELECT $1, operation, id, $15, 'import' FROM input WHERE operation <> '' ORDER BY operation
			ON CONFLICT DO NOTHING RETURNING 1
		)
		SELECT (SELECT count(*) FROM new), (SELECT count(*) FROM operation), clock_timestamp()`,
		issuer, ids, requests, operations, cards, consumers, products, channels, terms, ends,
		s.cfg.HashKeys.content(comparisonVersion, []byte(neverSame)), comparisonVersion, actor, order.Accepted, OperationProduce,
	).Scan(&orders, &named, &now)
	if err != nil {
		return fmt.Errorf("inserting orders: %w", err)
	}
	known := 0
	w := advances{store: s}
	var open guardRows
	for _, r := range rows {
		// Its times count from now: nobody knows since when D1 has it.
		o := &lockedOrder{
			orderKey: orderKey{issuer, r.id}, now: now, createdAt: now, heardAt: &now,
			cardID: r.CardID, cardProductID: r.CardProductID, issuance: r.Issuance,
		}
		o.state = order.NewState(r.EndsAt)
		o.state.Version = 0 // the first event is that of the import
		o.stored = o.state
		if r.OperationID != "" {
			o.operations = []string{r.OperationID}
			known++
		}
		w.advance(o, Cause{Kind: CauseImport, Actor: actor, Action: EventImported}, order.Imported{OperationID: r.OperationID, Status: r.Status})
		w.events[len(w.events)-1].previous = "" // nobody here knows
		if !o.state.Ended() {
			open.add(o, nil)
		}
	}
	if orders < n || named < known {
		return errOvertaken
	}
	var b pgx.Batch
	w.queue(&b)
	queueHeldGuards(&b, open)
	return send(ctx, tx, &b)
}

// wakeParked has what D1 told of imported orders before applied soon, by whichever
// process sweeps next.
func (s *Store) wakeParked(ctx context.Context, issuer string, rows []*imported) error {
	requests, operations := make(texts, len(rows)), make(texts, len(rows))
	for i, r := range rows {
		requests[i], operations[i] = r.IssuerRequestID, r.OperationID
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, steadyPlans); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			WITH named AS (
				SELECT id FROM notifications WHERE issuer_id = $1 AND outcome = 'parked' AND issuer_request_id = ANY($2::text[])
				UNION SELECT id FROM notifications WHERE issuer_id = $1 AND outcome = 'parked' AND operation_id = ANY($3::text[])
			), locked AS (
				SELECT n.id FROM notifications n JOIN named USING (id) ORDER BY n.digest FOR UPDATE OF n
			)
			UPDATE notifications n SET next_try_at = now() FROM locked WHERE n.id = locked.id AND n.outcome = 'parked'`,
			issuer, requests, operations)
		return err
	})
	if err != nil {
		return fmt.Errorf("waking the notifications of imported orders: %w", err)
	}
	return nil
}
