package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// Batch is an upload of many orders.
type Batch struct {
	IssuerID    string
	ID          uuid.UUID
	Key         string // the Idempotency-Key of the upload
	Status      BatchStatus
	Format      string
	Hold        bool // its orders were to be kept back
	Rows        BatchCounts
	CreatedAt   time.Time
	CreatedBy   string
	UpdatedAt   time.Time
	CompletedAt *time.Time
}

// BatchCounts counts rows by what became of them.
type BatchCounts struct {
	Read     int64 `json:"read"`
	Accepted int64 `json:"accepted"`
	Replayed int64 `json:"replayed"`
	Refused  int64 `json:"refused"`
}

// BatchStatus is where an upload stands.
type BatchStatus string

const (
	BatchReceiving   BatchStatus = "RECEIVING"
	BatchInterrupted BatchStatus = "INTERRUPTED" // goes on when the same file comes again
	BatchCompleted   BatchStatus = "COMPLETED"
	BatchCancelled   BatchStatus = "CANCELLED"
)

// batchLease is for how long an upload that stores nothing counts as alive.
const batchLease = time.Minute

// batchColumns are the columns of order_batches that make a Batch, in the order of
// batchFields. An upload whose lease ran out died.
const batchColumns = `b.issuer_id, b.id, b.key,
	CASE WHEN b.status = 'RECEIVING' AND b.lease_until <= now() THEN 'INTERRUPTED' ELSE b.status END,
	b.format, b.hold, b.rows_read, b.accepted, b.replayed, b.refused, b.created_at, b.created_by, b.updated_at, b.completed_at`

func batchFields(b *Batch) []any {
	return []any{
		&b.IssuerID, &b.ID, &b.Key, &b.Status, &b.Format, &b.Hold, &b.Rows.Read, &b.Rows.Accepted, &b.Rows.Replayed, &b.Rows.Refused,
		&b.CreatedAt, &b.CreatedBy, &b.UpdatedAt, &b.CompletedAt,
	}
}

func scanBatch(row pgx.CollectableRow) (*Batch, error) {
	var b Batch
	return &b, row.Scan(batchFields(&b)...)
}

// Batch reads one batch. The error is ErrNotFound when the issuer has no such batch.
func (s *Store) Batch(ctx context.Context, issuer string, id uuid.UUID) (*Batch, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+batchColumns+` FROM order_batches b WHERE b.issuer_id = $1 AND b.id = $2`, issuer, id)
	if err != nil {
		return nil, fmt.Errorf("reading a batch: %w", err)
	}
	b, err := pgx.CollectExactlyOneRow(rows, scanBatch)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading a batch: %w", err)
	}
	return b, nil
}

// Batches lists an issuer's batches older than before (all, if it is nil), newest
// first; only the one with the given key, unless that is empty.
func (s *Store) Batches(ctx context.Context, issuer, key string, before uuid.UUID, limit int) ([]*Batch, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+batchColumns+` FROM order_batches b
		WHERE b.issuer_id = $1 AND ($2::text IS NULL OR b.key = $2) AND ($3::uuid IS NULL OR b.id < $3)
		ORDER BY b.id DESC LIMIT $4`, issuer, optional(key), optionalID(before), limit)
	if err != nil {
		return nil, fmt.Errorf("listing batches: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanBatch)
	if err != nil {
		return nil, fmt.Errorf("listing batches: %w", err)
	}
	return list, nil
}

// BatchResult is what became of a row.
type BatchResult struct {
	Line            int64 // in the file, from 1
	Outcome         RowOutcome
	OrderID         *uuid.UUID // the order it led to, or that was in the way
	IssuerRequestID string     // of the order it led to
	Warnings        []string
	Problem         string // why it was refused: a ConflictKind, ProblemInvalid or ProblemInternal
	Faults          order.Faults
}

// RowOutcome is what became of a row.
type RowOutcome string

const (
	RowAccepted RowOutcome = "accepted"
	RowReplayed RowOutcome = "replayed"
	RowRefused  RowOutcome = "refused"
)

// RowOutcomes lists them all.
var RowOutcomes = []RowOutcome{RowAccepted, RowReplayed, RowRefused}

// Problems of rows beside the ConflictKinds.
const (
	ProblemInvalid  = "invalid-request" // Faults say what is wrong
	ProblemInternal = "internal"        // the database did not take it
)

// BatchResults returns the next results of a batch after a line, in the order of the
// file; only those with the given outcome, unless it is empty.
func (s *Store) BatchResults(ctx context.Context, issuer string, batch uuid.UUID, outcome RowOutcome, after int64, limit int) ([]BatchResult, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT r.line, r.outcome, r.order_id, CASE WHEN r.problem IS NULL THEN coalesce(o.issuer_request_id, '') ELSE '' END,
			CASE WHEN r.outcome = 'accepted' THEN coalesce(o.warnings, '{}') ELSE '{}' END, coalesce(r.problem, ''), r.faults
		FROM order_batch_rows r LEFT JOIN orders o ON o.issuer_id = r.issuer_id AND o.id = r.order_id
		WHERE r.issuer_id = $1 AND r.batch_id = $2 AND r.line > $3 AND ($4::text IS NULL OR r.outcome = $4)
		ORDER BY r.line LIMIT $5`, issuer, batch, after, optional(string(outcome)), limit)
	if err != nil {
		return nil, fmt.Errorf("reading the results of a batch: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r BatchResult, err error) {
		return r, row.Scan(&r.Line, &r.Outcome, &r.OrderID, &r.IssuerRequestID, &r.Warnings, &r.Problem, &r.Faults)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the results of a batch: %w", err)
	}
	return list, nil
}

// BatchAction is what can be done to all orders of a batch.
type BatchAction string

const (
	BatchHold    BatchAction = "hold"
	BatchRelease BatchAction = "release"
	BatchCancel  BatchAction = "cancel"
)

// evidence is how an action that halts advances an order.
func (a BatchAction) evidence() order.Evidence {
	if a == BatchHold {
		return order.Hold{Reason: order.HeldByPerson}
	}
	return order.Cancel{}
}

// halts tells whether the action is to keep orders from being sent.
func (a BatchAction) halts() bool { return a != BatchRelease }

// changes tells whether the action changes orders with a status, and a hold. A schedule
// is no hold of the batch: it ends by itself, and a release that is repeated does not end
// it; but an order that is to be held is not to be sent when its time comes.
func (a BatchAction) changes(s order.Status, hold order.HoldReason) bool {
	switch a {
	case BatchHold:
		return s == order.Accepted || s == order.Held && hold == order.HeldBySchedule
	case BatchRelease:
		return s == order.Held && hold != order.HeldBySchedule
	}
	return s == order.Accepted || s == order.Held
}

// tooLate tells whether the action should have changed an order with this status,
// and cannot: D1 has it, or may have it.
func (a BatchAction) tooLate(s order.Status) bool {
	switch s {
	case order.Accepted:
		return a != BatchRelease // its message is claimed
	case order.Held, order.Rejected, order.Cancelled, order.Failed, order.Returned:
		return false
	}
	return a != BatchRelease
}

// ActionCounts counts the orders of a batch by what an action did to them.
type ActionCounts struct {
	Changed   int64 // by this call
	Unchanged int64 // nothing was to be done
	TooLate   int64 // being sent, or sent before
}

// actChunk is how many orders of a batch are changed in one transaction: it bounds for
// how long they stay locked.
const actChunk = 500

// Act holds, releases or cancels all orders of a batch, chunk by chunk, and those
// that are still being uploaded. An order that is being sent, or was, stays as it
// is. What is interrupted may be called again.
func (s *Store) Act(ctx context.Context, issuer string, batch uuid.UUID, action BatchAction, actor string) (ActionCounts, error) {
	var counts ActionCounts
	tag, err := s.pool.Exec(ctx, `
		UPDATE order_batches SET updated_at = now(),
			held = CASE $3 WHEN 'hold' THEN true WHEN 'release' THEN false ELSE held END,
			status = CASE $3 WHEN 'cancel' THEN 'CANCELLED' ELSE status END
		WHERE issuer_id = $1 AND id = $2`, issuer, batch, action)
	if err != nil {
		return counts, fmt.Errorf("marking a batch: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return counts, ErrNotFound
	}
	var after uuid.UUID
	for more := true; more; {
		var chunk ActionCounts
		var locked map[orderKey]*lockedOrder
		last := after
		err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
			chunk, last, more, locked, err = s.actOnChunk(ctx, tx, issuer, batch, action, actor, after)
			return err
		})
		if err != nil {
			return counts, fmt.Errorf("changing the orders of a batch: %w", err)
		}
		s.logChanges(ctx, locked)
		after = last
		counts.Changed += chunk.Changed
		counts.Unchanged += chunk.Unchanged
		counts.TooLate += chunk.TooLate
		if action == BatchRelease && chunk.Changed > 0 {
			s.cfg.OnReady(LaneOf(issuer))
		}
	}
	return counts, nil
}

func (s *Store) actOnChunk(ctx context.Context, tx pgx.Tx, issuer string, batch uuid.UUID, action BatchAction, actor string, after uuid.UUID) (
	counts ActionCounts, last uuid.UUID, more bool, locked map[orderKey]*lockedOrder, err error,
) {
	type candidate struct {
		ID     uuid.UUID
		Status order.Status
		Hold   order.HoldReason
		Halted bool
	}
	rows, err := tx.Query(ctx, `
		SELECT o.id, s.status, coalesce(s.hold, ''), EXISTS (SELECT FROM outbox m
			WHERE m.issuer_id = o.issuer_id AND m.order_id = o.id AND m.kind = 'submit' AND m.halt = 'hold')
		FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
		WHERE o.issuer_id = $1 AND o.batch_id = $2 AND o.id > $3 ORDER BY o.id LIMIT $4`, issuer, batch, after, actChunk)
	if err != nil {
		return counts, last, false, nil, err
	}
	candidates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil || len(candidates) == 0 {
		return counts, after, false, nil, err
	}
	var keys []orderKey
	for _, c := range candidates {
		switch {
		case action.changes(c.Status, c.Hold), action.halts() && c.Status == order.OutcomeUnknown, action == BatchRelease && c.Halted:
			keys = append(keys, orderKey{issuer, c.ID})
		case action.tooLate(c.Status):
			counts.TooLate++
		default:
			counts.Unchanged++
		}
	}
	locked, err = lockToAct(ctx, tx, keys)
	if err != nil {
		return counts, last, false, nil, err
	}
	messages, err := lockSubmits(ctx, tx, keys)
	if err != nil {
		return counts, last, false, nil, err
	}
	same, err := inSameHistory(ctx, tx) // in another one D1 may have what this one never sent
	if err != nil {
		return counts, last, false, nil, err
	}
	w := advances{store: s}
	cause := Cause{Kind: CauseRequest, ID: batch.String(), Actor: actor}
	var halted []int64
	var asked []*lockedOrder
	for _, o := range locked {
		m, waits := messages[o.id]
		held := o.state.Status == order.Held
		certain := same && o.absent(m, waits) || action == BatchHold && held && len(o.operations) == 0 // which sends nothing
		due := action.changes(o.state.Status, o.state.Hold)
		switch {
		case due && (certain || action == BatchRelease):
			evidence := action.evidence()
			if action == BatchRelease { // of those that are to wait still, the schedule takes over
				evidence = order.Release{Early: s.clock(o).Early()}
				o.admitted = o.state.Hold == order.HeldByRule
			}
			w.advance(o, cause, evidence)
			counts.Changed++
		case due, action.tooLate(o.state.Status):
			if waits && action.halts() {
				halted = append(halted, m.id)
			}
			if action == BatchCancel && (waits || held) {
				if err := w.placeCancel(o, cause); err != nil {
					return counts, last, false, nil, err
				}
			}
			if action == BatchCancel && held { // D1 may have it all the same, so it is asked
				w.advance(o, cause, order.LostAnswer{})
				asked = append(asked, o)
			}
			counts.TooLate++
		case action == BatchRelease && o.halt == BatchHold:
			halted = append(halted, m.id)
			counts.Changed++
		default:
			counts.Unchanged++
		}
	}
	var b pgx.Batch
	w.queue(&b)
	if len(halted) > 0 {
		// A cancel is not taken back by a hold or a release.
		exec(&b, `UPDATE outbox SET halt = CASE WHEN halt = 'cancel' THEN halt WHEN $2::text <> 'release' THEN $2 END WHERE id = ANY ($1)`, halted, action)
	}
	if len(asked) > 0 {
		issuers, ids := columns(keysOf(asked))
		exec(&b, `
			UPDATE outbox m SET halt = $3 FROM unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id)
			WHERE m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'submit'`, issuers, ids, action)
	}
	return counts, candidates[len(candidates)-1].ID, len(candidates) == actChunk, locked, send(ctx, tx, &b)
}

// lockedSubmit is the message of an order that is to be sent, locked.
type lockedSubmit struct {
	id    int64
	maybe bool // a worker has it, or D1 may have the order
}

// lockSubmits locks the messages of orders that are to be sent. No worker can claim
// them until the transaction ends.
func lockSubmits(ctx context.Context, tx pgx.Tx, keys []orderKey) (map[uuid.UUID]lockedSubmit, error) {
	messages := make(map[uuid.UUID]lockedSubmit, len(keys))
	if len(keys) == 0 {
		return messages, nil
	}
	issuers, ids := columns(keys)
	rows, err := tx.Query(ctx, `
		SELECT m.id, m.order_id, m.claim_token IS NOT NULL OR m.maybe_sent_at IS NOT NULL
		FROM unnest($1::text[], $2::uuid[]) AS t(issuer_id, order_id)
			JOIN outbox m ON m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'submit'
		ORDER BY m.id FOR UPDATE OF m`, issuers, ids)
	if err != nil {
		return nil, err
	}
	var m lockedSubmit
	var id uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&m.id, &id, &m.maybe}, func() error { messages[id] = m; return nil })
	return messages, err
}

// BatchUpload is what an upload says of itself.
type BatchUpload struct {
	IssuerID string
	Key      string
	Client   string
	Format   string
	Hold     bool
}

// Errors of an upload.
var (
	// ErrBatchBusy: another request uploads the batch at this moment.
	ErrBatchBusy = errors.New("the batch is being uploaded by another request")
	// ErrBatchCancelled: somebody cancelled the batch.
	ErrBatchCancelled = errors.New("the batch was cancelled")
)

// BatchConflictError refuses an upload: its key belongs to another file, or to other
// options.
type BatchConflictError struct{ BatchID uuid.UUID }

func (e *BatchConflictError) Error() string { return "the key belongs to another batch" }

// BatchWriter takes the rows of an upload in the order of the file and stores them
// chunk by chunk, one chunk while the next one gathers. It is for one goroutine. Its
// caller ends it with Finish or Interrupt.
type BatchWriter struct {
	store   *Store
	batch   Batch
	token   uuid.UUID
	stored  []byte // digest of the rows that an earlier upload stored
	seen    int64
	renewed time.Time // when the lease of an upload that only compares was renewed
	digest  *runningDigest
	chunk   []batchRow
	size    int        // of the chunk, about, in bytes
	begun   time.Time  // when the chunk got its first row
	writing chan error // of the chunk that is being stored
	failed  error      // why a row was not stored: none after it may be
	counts  BatchCounts
}

// batchRow is one row: an order, or what is wrong with it.
type batchRow struct {
	line   int64
	entry  *entry
	faults order.Faults
}

// size is about what a row keeps in memory, in bytes.
func (r batchRow) size() int {
	const fault = 256
	if r.entry == nil {
		return fault * len(r.faults)
	}
	sealed := r.entry.sealed
	return len(r.entry.Request.Canonical) + len(sealed.production) + len(sealed.encryptedData) + fault*len(r.entry.Faults)
}

// Chunks of rows, so many or so large. A row may wait for company only briefly: what is
// stored shows as progress, and keeps the lease.
const (
	chunkRows = 500
	chunkSize = 4 << 20
	chunkAge  = 5 * time.Second
)

// OpenBatch begins an upload, or goes on with one that was interrupted. replay tells
// that all of it was stored before: its rows are then only compared. The error is
// ErrBatchBusy, ErrBatchCancelled or a *BatchConflictError when it cannot go on.
func (s *Store) OpenBatch(ctx context.Context, up BatchUpload) (w *BatchWriter, replay bool, err error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, false, fmt.Errorf("making a batch id: %w", err)
	}
	w = &BatchWriter{store: s, token: uuid.New(), digest: newRunningDigest(s.cfg.HashKeys)}
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			INSERT INTO order_batches (issuer_id, id, key, status, format, hold, held, digest, created_by, lease_until)
			VALUES ($1, $2, $3, 'INTERRUPTED', $4, $5, $5, $6, $7, now()) ON CONFLICT (issuer_id, key) DO NOTHING`,
			up.IssuerID, id, up.Key, up.Format, up.Hold, w.digest.sum(), up.Client)
		if err != nil {
			return err
		}
		row := tx.QueryRow(ctx, `SELECT `+batchColumns+`, b.digest FROM order_batches b WHERE b.issuer_id = $1 AND b.key = $2 FOR UPDATE`,
			up.IssuerID, up.Key)
		w.stored = nil
		if err := row.Scan(append(batchFields(&w.batch), &w.stored)...); err != nil {
			return err
		}
		switch b := &w.batch; {
		case b.Status == BatchCancelled:
			return ErrBatchCancelled
		case (b.Rows.Read > 0 || b.Status == BatchCompleted) && (b.Format != up.Format || b.Hold != up.Hold):
			return &BatchConflictError{b.ID}
		case b.Status == BatchReceiving:
			return ErrBatchBusy
		case b.Status == BatchCompleted:
			replay = true
			return nil
		}
		// What somebody did to the batch meanwhile stays: held differs from hold then.
		_, err = tx.Exec(ctx, `
			UPDATE order_batches SET status = 'RECEIVING', claim_token = $3, lease_until = now() + $4::interval, updated_at = now(),
				format = $5, hold = $6, held = CASE WHEN held = hold THEN $6 ELSE held END
			WHERE issuer_id = $1 AND id = $2`, w.batch.IssuerID, w.batch.ID, w.token, batchLease, up.Format, up.Hold)
		w.batch.Status = BatchReceiving
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("opening a batch: %w", err)
	}
	return w, replay, nil
}

// Counts returns how many rows this writer has stored, by what became of them.
func (w *BatchWriter) Counts() map[RowOutcome]int64 {
	return map[RowOutcome]int64{RowAccepted: w.counts.Accepted, RowReplayed: w.counts.Replayed, RowRefused: w.counts.Refused}
}

// ID returns the batch's id.
func (w *BatchWriter) ID() uuid.UUID { return w.batch.ID }

// Stored tells of the next row of the file whether it was stored before. The caller
// hands over every row to it, and then those that were not to Accept. The error is a
// *BatchConflictError when the file is not the one that was begun.
func (w *BatchWriter) Stored(ctx context.Context, line int64, row []byte) (bool, error) {
	if w.batch.Status == BatchCompleted && w.seen == w.batch.Rows.Read {
		return false, &BatchConflictError{w.batch.ID} // a longer file
	}
	w.digest.add(line, row)
	w.seen++
	if w.seen == w.batch.Rows.Read && !w.digest.is(w.stored) {
		return false, &BatchConflictError{w.batch.ID}
	}
	if w.seen > w.batch.Rows.Read {
		return false, nil
	}
	return true, w.renew(ctx)
}

// renew keeps the lease while rows are only compared, which may take long.
func (w *BatchWriter) renew(ctx context.Context) error {
	if w.batch.Status == BatchCompleted || w.seen%chunkRows > 0 && time.Since(w.renewed) < chunkAge {
		return nil
	}
	w.renewed = time.Now()
	tag, err := w.store.pool.Exec(ctx, `
		UPDATE order_batches SET lease_until = now() + $4::interval
		WHERE issuer_id = $1 AND id = $2 AND claim_token = $3 AND status = 'RECEIVING'`, w.batch.IssuerID, w.batch.ID, w.token, batchLease)
	if err != nil {
		return fmt.Errorf("keeping a batch: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return w.store.lostBatch(ctx, w)
	}
	return nil
}

// Accept takes a row: an order, or what is wrong with it.
func (w *BatchWriter) Accept(ctx context.Context, line int64, a Acceptance) error {
	if a.hopeless() {
		return w.add(ctx, batchRow{line: line, faults: a.Faults})
	}
	e, err := w.store.newEntry(a)
	if err != nil {
		w.failed = err
		return err
	}
	e.batchID, e.class = &w.batch.ID, ClassBatch
	if a.Request.Urgent {
		e.class = ClassSingle
	}
	return w.add(ctx, batchRow{line: line, entry: e})
}

func (w *BatchWriter) add(ctx context.Context, row batchRow) error {
	if len(w.chunk) == 0 {
		w.begun = time.Now()
	}
	w.chunk = append(w.chunk, row)
	w.size += row.size()
	if len(w.chunk) < chunkRows && w.size < chunkSize && time.Since(w.begun) < chunkAge {
		return nil
	}
	return w.flush(ctx)
}

// flush begins to store the rows gathered so far, after those before them.
func (w *BatchWriter) flush(ctx context.Context) error {
	if err := w.settle(); err != nil || len(w.chunk) == 0 {
		return err
	}
	chunk, digest := w.chunk, w.digest.sum()
	w.chunk, w.size = nil, 0
	w.writing = make(chan error, 1)
	go func() {
		w.writing <- w.store.contained(func() error { return w.store.storeChunk(ctx, w, chunk, digest) })
	}()
	return nil
}

// settle waits for the chunk that is being stored, and tells whether all are so far.
func (w *BatchWriter) settle() error {
	if w.writing != nil {
		err := <-w.writing
		w.writing = nil
		w.failed = cmp.Or(w.failed, err)
	}
	return w.failed
}

// Finish stores what is left and completes the batch. The error is a
// *BatchConflictError when the file ended before what an earlier upload stored of it.
func (w *BatchWriter) Finish(ctx context.Context) (*Batch, error) {
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	if err := w.settle(); err != nil {
		return nil, err
	}
	if w.seen < w.batch.Rows.Read {
		return nil, &BatchConflictError{w.batch.ID}
	}
	if w.batch.Status != BatchCompleted {
		tag, err := w.store.pool.Exec(ctx, `
			UPDATE order_batches SET status = 'COMPLETED', claim_token = NULL, completed_at = now(), updated_at = now()
			WHERE issuer_id = $1 AND id = $2 AND claim_token = $3 AND status = 'RECEIVING'`, w.batch.IssuerID, w.batch.ID, w.token)
		if err != nil {
			return nil, fmt.Errorf("completing a batch: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return nil, w.store.lostBatch(ctx, w)
		}
	}
	return w.store.Batch(ctx, w.batch.IssuerID, w.batch.ID)
}

// lostBatch tells why a batch is no longer this writer's.
func (s *Store) lostBatch(ctx context.Context, w *BatchWriter) error {
	b, err := s.Batch(ctx, w.batch.IssuerID, w.batch.ID)
	if err != nil {
		return err
	}
	if b.Status == BatchCancelled {
		return ErrBatchCancelled
	}
	return ErrBatchBusy
}

// Interrupt stores what was read and gives the batch up: the same file may go on. It
// does nothing to one that is no longer the writer's.
func (w *BatchWriter) Interrupt(ctx context.Context) {
	if w.flush(ctx) == nil { // else its trouble is why the writer gives up
		_ = w.settle() // what is not stored comes again
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), groupTimeout)
	defer cancel()
	_, err := w.store.pool.Exec(ctx, `
		UPDATE order_batches SET status = 'INTERRUPTED', claim_token = NULL, updated_at = now()
		WHERE issuer_id = $1 AND id = $2 AND claim_token = $3 AND status = 'RECEIVING'`, w.batch.IssuerID, w.batch.ID, w.token)
	if err != nil {
		// Its lease runs out.
		w.store.cfg.Log.Error("a batch could not be marked as interrupted", "batchId", w.batch.ID, "error", err)
	}
}

// chunkTimeout bounds the storing of a chunk, waiting for locks included. It goes on
// when the caller hangs up: the rows were read.
const chunkTimeout = 30 * time.Second

// storeChunk stores rows, what became of them, and how far the file was read, in one
// transaction.
func (s *Store) storeChunk(ctx context.Context, w *BatchWriter, rows []batchRow, digest []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chunkTimeout)
	defer cancel()
	var entries []*entry
	for _, r := range rows {
		if r.entry != nil {
			entries = append(entries, r.entry)
		}
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		var status BatchStatus
		var held bool
		// Locks the batch: a hold or cancel comes before this chunk or after it.
		err := tx.QueryRow(ctx, `
			UPDATE order_batches SET lease_until = now() + $4::interval
			WHERE issuer_id = $1 AND id = $2 AND claim_token = $3 RETURNING status, held`,
			w.batch.IssuerID, w.batch.ID, w.token, batchLease).Scan(&status, &held)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrBatchBusy // it took too long, and another request took over
		}
		if err != nil {
			return fmt.Errorf("locking the batch: %w", err)
		}
		if status == BatchCancelled {
			return ErrBatchCancelled
		}
		for _, e := range entries {
			e.hold = held || e.Request.Hold
		}
		if err := s.insertEach(ctx, tx, entries); err != nil {
			return err
		}
		return finishChunk(ctx, tx, w, rows, digest)
	})
	if err != nil {
		return fmt.Errorf("storing rows of a batch: %w", err)
	}
	s.announce(entries)
	for _, r := range rows {
		w.counts.count(r.result().Outcome)
	}
	return nil
}

// insertEach inserts entries, and where they cannot be stored together, one by one: an
// order that the database does not take is refused alone.
func (s *Store) insertEach(ctx context.Context, tx pgx.Tx, entries []*entry) error {
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return s.insert(ctx, tx, entries) })
	if err == nil || Unavailable(err) {
		return err
	}
	for _, e := range entries {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return s.insert(ctx, tx, []*entry{e}) })
		if err != nil && Unavailable(err) {
			return err
		}
		if err != nil {
			s.cfg.Log.Error("a row of a batch could not be stored", "batchId", e.batchID, "orderId", e.order.ID, "error", err)
			e.reset()
			e.refuse(err)
		}
	}
	return nil
}

func finishChunk(ctx context.Context, tx pgx.Tx, w *BatchWriter, rows []batchRow, digest []byte) error {
	n := len(rows)
	lines, outcomes, orders := make([]int64, n), make([]string, n), make([]pgtype.UUID, n)
	problems, faults := make([]*string, n), make([]*string, n)
	var counts BatchCounts
	for i, r := range rows {
		result := r.result()
		if r.entry != nil && errors.Is(r.entry.err, ErrNewerRelease) {
			return ErrNewerRelease // that release can go on
		}
		counts.count(result.Outcome)
		lines[i], outcomes[i], orders[i], problems[i] = r.line, string(result.Outcome), pgID(result.OrderID), optional(result.Problem)
		if len(result.Faults) > 0 {
			text, err := json.Marshal(result.Faults)
			if err != nil {
				return fmt.Errorf("writing the faults of a row: %w", err)
			}
			faults[i] = optional(string(text))
		}
	}
	var b pgx.Batch
	exec(&b, `
		INSERT INTO order_batch_rows (issuer_id, batch_id, line, outcome, order_id, problem, faults)
		SELECT $1, $2, line, outcome, order_id, problem, faults::jsonb
		FROM unnest($3::bigint[], $4::text[], $5::uuid[], $6::text[], $7::text[]) AS t(line, outcome, order_id, problem, faults)`,
		w.batch.IssuerID, w.batch.ID, lines, outcomes, orders, problems, faults)
	exec(&b, `
		UPDATE order_batches SET rows_read = rows_read + $3, accepted = accepted + $4, replayed = replayed + $5, refused = refused + $6,
			digest = $7, updated_at = now()
		WHERE issuer_id = $1 AND id = $2`,
		w.batch.IssuerID, w.batch.ID, counts.Read, counts.Accepted, counts.Replayed, counts.Refused, digest)
	if err := send(ctx, tx, &b); err != nil {
		return fmt.Errorf("storing the results of rows: %w", err)
	}
	return nil
}

func (c *BatchCounts) count(o RowOutcome) {
	c.Read++
	switch o {
	case RowAccepted:
		c.Accepted++
	case RowReplayed:
		c.Replayed++
	case RowRefused:
		c.Refused++
	}
}

// result is what became of a row.
func (r batchRow) result() BatchResult {
	result := BatchResult{Line: r.line, Outcome: RowRefused, Problem: ProblemInvalid, Faults: r.faults}
	if r.entry == nil {
		return result
	}
	switch e := r.entry; e.verdict {
	case verdictAccepted:
		return BatchResult{Line: r.line, Outcome: RowAccepted, OrderID: &e.order.ID, IssuerRequestID: e.order.IssuerRequestID, Warnings: e.order.Warnings}
	case verdictReplayed:
		return BatchResult{Line: r.line, Outcome: RowReplayed, OrderID: &e.other}
	default:
		if faults, ok := errors.AsType[order.Faults](e.err); ok {
			result.Faults = faults
		} else if conflict, ok := errors.AsType[*ConflictError](e.err); ok {
			result.Problem, result.OrderID = string(conflict.Kind), &conflict.OrderID
		} else {
			result.Problem = ProblemInternal
		}
		return result
	}
}

// Rehearse finds out what would become of rows, and leaves nothing behind. The
// acceptances are those of the lines.
func (s *Store) Rehearse(ctx context.Context, lines []int64, acceptances []Acceptance) ([]BatchResult, error) {
	rows := make([]batchRow, len(lines))
	var entries []*entry
	for i, a := range acceptances {
		rows[i] = batchRow{line: lines[i], faults: a.Faults}
		if a.hopeless() {
			continue
		}
		e, err := s.newEntry(a)
		if err != nil {
			return nil, err
		}
		rows[i].entry, entries = e, append(entries, e)
	}
	if err := s.rehearse(ctx, entries); err != nil {
		return nil, fmt.Errorf("trying rows of a batch: %w", err)
	}
	results := make([]BatchResult, len(rows))
	for i, r := range rows {
		results[i] = r.result()
		isNew := func(e *entry) bool { return results[i].OrderID != nil && e.order.ID == *results[i].OrderID }
		if slices.ContainsFunc(entries, isNew) {
			results[i].OrderID = nil // nobody can look it up
		}
	}
	return results, nil
}
