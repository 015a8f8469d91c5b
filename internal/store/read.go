package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"cardorder/internal/order"
)

// Order is an order as it may be shown: without personal data.
type Order struct {
	IssuerID          string
	ID                uuid.UUID
	IssuerRequestID   string
	CardID            string
	ConsumerID        string
	CardProductID     string
	Channel           order.Channel
	Terms             order.Terms
	Metadata          map[string]string
	Urgent            bool
	DuplicateOverride string
	ReplacesOrderID   *uuid.UUID
	ReplacedBy        []uuid.UUID // orders that stand in for this one
	NotBefore         *time.Time  // when it may be sent, where that is not at once
	BatchID           *uuid.UUID
	Warnings          []string
	Imported          bool // placed by an older system, never sent from here
	CreatedAt         time.Time
	CreatedBy         string
	State             order.State
	UpdatedAt         time.Time
	EndedAt           *time.Time
	Shipments         []Shipment
	// Asking tells that D1 is being asked about the order, HoldPending that it is held as
	// soon as it is certain that D1 does not have it. They are read with a single order only.
	Asking, HoldPending bool
}

// Shipment is what the carrier says of a parcel.
type Shipment struct {
	TrackingNumber string    `json:"trackingNumber"`
	Carrier        string    `json:"carrier"`
	Status         string    `json:"status"`
	TrackingURL    string    `json:"trackingUrl"`
	CreatedAt      time.Time `json:"createdAt"`
	UpdatedAt      time.Time `json:"updatedAt"`
}

// stateColumns are the columns of order_state that make an order.State, in the
// order of stateFields. Lists that are empty, as most are, are read as NULL: an array costs
// much more on its way.
const stateColumns = `s.version, s.status, s.rank, s.step_rank, s.top_rank, s.end_rank, s.ends_at,
	coalesce(s.operation_id, ''), nullif(s.attention, '{}'), coalesce(s.due_date, ''), s.due_date_rank,
	coalesce(s.production_site, ''), s.production_site_rank,
	coalesce(s.hold, ''), s.status_since, s.due_at, s.late, s.late_in, nullif(s.acknowledged, '{}'), nullif(s.parcels, '{}')`

func stateFields(s *order.State) []any {
	return []any{
		&s.Version, &s.Status, &s.Rank, &s.StepRank, &s.TopRank, &s.EndRank, &s.EndsAt,
		&s.OperationID, &s.Attention, &s.DueDate.Value, &s.DueDate.Rank,
		&s.ProductionSite.Value, &s.ProductionSite.Rank,
		&s.Hold, &s.Since, (*nullTime)(&s.DueAt), &s.Late, &s.LateIn, &s.Acknowledged, &s.Parcels,
	}
}

// nullTime reads NULL as the zero time.
type nullTime time.Time

// ScanTimestamptz is called by pgx.
func (t *nullTime) ScanTimestamptz(v pgtype.Timestamptz) error {
	*t = nullTime(v.Time)
	return nil
}

// selectOrders reads whole orders; conditions follow.
const selectOrders = "SELECT " + orderColumns + orderTables

// selectOrder reads one, and whether D1 is being asked about it.
const selectOrder = "SELECT " + orderColumns + `, EXISTS (SELECT FROM outbox m WHERE m.issuer_id = o.issuer_id AND m.order_id = o.id
		AND (m.kind = 'ask' OR m.maybe_sent_at IS NOT NULL) AND m.run_at < 'infinity'),
	EXISTS (SELECT FROM outbox m WHERE m.issuer_id = o.issuer_id AND m.order_id = o.id AND m.kind = 'submit' AND m.halt = 'hold')` + orderTables + `
	WHERE o.issuer_id = $1 AND o.id = $2`

// orderColumns are what makes an Order, in the order of orderFields.
const orderColumns = `o.issuer_id, o.id, o.issuer_request_id, o.card_id, o.consumer_id, o.card_product_id,
		o.distribution_channel, o.terms, o.metadata, o.urgent, coalesce(o.duplicate_override, ''), o.warnings,
		o.imported, o.created_at, o.created_by, s.updated_at, s.ended_at, o.replaces_order_id, o.batch_id, o.not_before,
		ARRAY(SELECT r.id FROM orders r WHERE r.issuer_id = o.issuer_id AND r.replaces_order_id = o.id ORDER BY r.id),
		` + stateColumns + `,
		(SELECT coalesce(json_agg(json_build_object(
				'trackingNumber', p.tracking_number, 'carrier', p.carrier, 'status', p.status,
				'trackingUrl', p.tracking_url, 'createdAt', p.created_at, 'updatedAt', p.updated_at)
				ORDER BY p.created_at), '[]')
			FROM (SELECT * FROM shipments p WHERE p.issuer_id = o.issuer_id AND p.order_id = o.id
				ORDER BY p.created_at DESC LIMIT 50) p)`

const orderTables = `
	FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id `

func orderFields(o *Order) []any {
	fields := append([]any{
		&o.IssuerID, &o.ID, &o.IssuerRequestID, &o.CardID, &o.ConsumerID, &o.CardProductID,
		&o.Channel, &o.Terms, &o.Metadata, &o.Urgent, &o.DuplicateOverride, &o.Warnings,
		&o.Imported, &o.CreatedAt, &o.CreatedBy, &o.UpdatedAt, &o.EndedAt, &o.ReplacesOrderID, &o.BatchID, &o.NotBefore, &o.ReplacedBy,
	}, stateFields(&o.State)...)
	return append(fields, &o.Shipments)
}

// showDue fills in by when an order that D1 has not taken should arrive: until it is
// taken that is only reckoned, not stored.
func (s *Store) showDue(o *Order) {
	if o.State.DueAt.IsZero() && o.State.Rank == 0 && !o.State.Ended() {
		o.State.DueAt = o.State.Due(order.Clock{
			Limits: s.limits(o.IssuerID, o.CardProductID), Issuance: o.Terms.Services.Issuance, Urgent: o.Urgent,
			Accepted: o.CreatedAt, NotBefore: timeOf(o.NotBefore),
		})
	}
}

func scanOrder(row pgx.CollectableRow) (*Order, error) {
	var o Order
	return &o, row.Scan(orderFields(&o)...)
}

// Order reads one order. The error is ErrNotFound when the issuer has no such order.
func (s *Store) Order(ctx context.Context, issuer string, id uuid.UUID) (*Order, error) {
	rows, err := s.pool.Query(ctx, selectOrder, issuer, id)
	if err != nil {
		return nil, fmt.Errorf("reading an order: %w", err)
	}
	o, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (*Order, error) {
		var o Order
		return &o, row.Scan(append(orderFields(&o), &o.Asking, &o.HoldPending)...)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading an order: %w", err)
	}
	s.showDue(o)
	return o, nil
}

// Filter selects orders of an issuer; what is empty selects nothing out.
type Filter struct {
	Statuses        []order.Status
	CardID          string
	ConsumerID      string
	CardProductID   string
	Channel         order.Channel
	GroupID         string
	BatchID         uuid.UUID
	IssuerRequestID string
	IdempotencyKey  string
	OperationID     string
	TrackingNumber  string
	Attention       order.Attention // only orders that need a human for this; AnyAttention: for anything
	Late            bool            // only orders that are late
	CreatedFrom     time.Time       // inclusive
	CreatedTo       time.Time       // exclusive
	Before          uuid.UUID       // only orders older than this one
	Limit           int             // 1 to 200
}

// AnyAttention stands in a Filter for whatever a human is needed for.
const AnyAttention order.Attention = "any"

// open are the statuses of orders that have certainly not ended: those few are found by
// an index of their own.
var open = []order.Status{
	order.Accepted, order.Held, order.OutcomeUnknown, order.Rejected, order.Submitted, order.DataPrepared,
	order.Ready, order.OnHold, order.InProduction, order.Exception,
}

// idSkew is by how much the clock that made an order's id may differ from the
// database's, which dates the order.
const idSkew = time.Hour

// conditions writes the filter as SQL over orders o and their states s.
func (f Filter) conditions(issuer string) (conditions []string, args []any) {
	args = []any{issuer}
	where := func(set bool, condition string, arg any) {
		if set {
			args = append(args, arg)
			conditions = append(conditions, strings.ReplaceAll(condition, "?", fmt.Sprintf("$%d", len(args))))
		}
	}
	conditions = append(conditions, "o.issuer_id = $1")
	where(len(f.Statuses) > 0, "s.status = ANY(?)", f.Statuses)
	if len(f.Statuses) > 0 && !slices.ContainsFunc(f.Statuses, func(s order.Status) bool { return !slices.Contains(open, s) }) {
		conditions = append(conditions, "s.ended_at IS NULL")
	}
	where(f.CardID != "", "o.card_id = ?", f.CardID)
	where(f.ConsumerID != "", "o.consumer_id = ?", f.ConsumerID)
	where(f.CardProductID != "", "o.card_product_id = ?", f.CardProductID)
	where(f.Channel != "", "o.distribution_channel = ?", f.Channel)
	where(f.GroupID != "", "o.group_id = ?", f.GroupID)
	where(f.BatchID != uuid.Nil, "o.batch_id = ?", f.BatchID)
	where(f.IssuerRequestID != "", "o.issuer_request_id = ?", f.IssuerRequestID)
	where(f.IdempotencyKey != "", "o.id = (SELECT k.order_id FROM idempotency_keys k WHERE k.issuer_id = $1 AND k.key = ?)", f.IdempotencyKey)
	where(f.OperationID != "", "o.id = (SELECT p.order_id FROM operations p WHERE p.issuer_id = $1 AND p.operation_id = ?)", f.OperationID)
	where(f.TrackingNumber != "", "o.id IN (SELECT p.order_id FROM shipments p WHERE p.issuer_id = $1 AND p.tracking_number = ?)", f.TrackingNumber)
	if f.Attention != "" { // for any one too: the index is of these orders only
		conditions = append(conditions, "s.attention <> '{}'")
	}
	where(f.Attention != "" && f.Attention != AnyAttention, "s.attention @> ARRAY[?::text]", f.Attention)
	if f.Late {
		conditions = append(conditions, "s.late")
	}
	// The ids, which begin with the time, drive; the dates decide.
	where(!f.CreatedFrom.IsZero(), "o.id >= ?", idsBefore(f.CreatedFrom.Add(-idSkew)))
	where(!f.CreatedFrom.IsZero(), "o.created_at >= ?", f.CreatedFrom)
	where(!f.CreatedTo.IsZero(), "o.id < ?", idsBefore(f.CreatedTo.Add(idSkew)))
	where(!f.CreatedTo.IsZero(), "o.created_at < ?", f.CreatedTo)
	where(f.Before != uuid.Nil, "o.id < ?", f.Before)
	return conditions, args
}

// ErrTooSlow refuses a list that would take longer than 2 s: a query that few
// orders match among many must not keep others from the database.
var ErrTooSlow = errors.New("the query takes too long")

const listTimeout = 2 * time.Second

// Orders lists orders, newest first. Order ids are UUIDv7, so the primary key
// gives that order, and a page starts after the last id of the one before it.
func (s *Store) Orders(ctx context.Context, issuer string, f Filter) ([]*Order, error) {
	conditions, args := f.conditions(issuer)
	args = append(args, f.Limit)
	sql := selectOrders + "WHERE " + strings.Join(conditions, " AND ") +
		fmt.Sprintf(" ORDER BY o.id DESC LIMIT $%d", len(args))
	var list []*Order
	err := s.list(ctx, sql, args, func(rows pgx.Rows) (err error) {
		list, err = pgx.CollectRows(rows, scanOrder)
		return err
	})
	if err != nil && !errors.Is(err, ErrTooSlow) {
		err = fmt.Errorf("listing orders: %w", err)
	}
	for _, o := range list {
		s.showDue(o)
	}
	return list, err
}

// list runs a query of a list, which may take long and must not keep others from the
// database.
func (s *Store) list(ctx context.Context, sql string, args []any, collect func(pgx.Rows) error) error {
	select {
	case s.lists <- struct{}{}:
		defer func() { <-s.lists }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := s.pool.Acquire(ctx) // waiting for a connection is not the query's fault
	if err != nil {
		return err
	}
	defer conn.Release()
	short, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	rows, err := conn.Query(short, sql, args...)
	if err == nil {
		err = collect(rows)
	}
	if err != nil && ctx.Err() == nil && short.Err() != nil {
		return ErrTooSlow
	}
	return err
}

// Entry is one thing that happened to an order. Exactly one of the pointers is set.
type Entry struct {
	At           time.Time
	Event        *Event
	Attempt      *Attempt
	Notification *Received
	Note         *Note
	Change       *Change // as it is now; what became of it when, events tell
}

// Event is a change of an order.
type Event struct {
	Seq            int
	Type           EventType
	Status         order.Status
	PreviousStatus order.Status
	Attention      []order.Attention
	Warnings       []string // of the order, with its first event
	Late           bool
	Cause          Cause
	CreatedAt      time.Time
}

// Received is a notification of an order.
type Received struct {
	ID            int64
	OperationID   string
	Outcome       string
	CorrelationID string
	TimesSeen     int
	CreatedAt     time.Time
	LastSeenAt    time.Time
	// Body is what D1 sent, for a part of it to be shown: it may hold personal data. Nil
	// when it is larger than a timeline has room for, or cannot be opened.
	Body []byte
}

// Format prints the notification's number only.
func (n Received) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{notification %d}", n.ID) }

// LogValue logs what Format prints.
func (n Received) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(n)) }

// maxTimeline bounds each part of a timeline: the newest are shown. maxTimelineBody is the
// largest body of a notification of which something is shown, in bytes as it is sealed:
// usual ones have a thousand.
const (
	maxTimeline     = 1000
	maxTimelineBody = 16 << 10
)

// Timeline returns all that happened to an order, oldest first.
func (s *Store) Timeline(ctx context.Context, issuer string, id uuid.UUID) ([]Entry, error) {
	var entries []Entry
	unopened := 0
	var b pgx.Batch
	b.Queue(`
		SELECT seq, type, status, coalesce(previous_status, ''), attention, late, cause, coalesce(cause_id, ''),
			coalesce(actor, ''), detail, created_at,
			CASE WHEN seq = 1 THEN coalesce((SELECT o.warnings FROM orders o WHERE o.issuer_id = $1 AND o.id = $2), '{}') END
		FROM order_events WHERE issuer_id = $1 AND order_id = $2 ORDER BY seq DESC LIMIT $3`,
		issuer, id, maxTimeline).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var e Event
			err := rows.Scan(&e.Seq, &e.Type, &e.Status, &e.PreviousStatus, &e.Attention, &e.Late,
				&e.Cause.Kind, &e.Cause.ID, &e.Cause.Actor, &e.Cause.Detail, &e.CreatedAt, &e.Warnings)
			entries = append(entries, Entry{At: e.CreatedAt, Event: &e})
			return err
		})
	})
	b.Queue(`
		SELECT id, kind, outcome, reason, coalesce(http_status, 0), coalesce(error_code, ''), coalesce(error_text, ''),
			coalesce(operation_id, ''), correlation_id, started_at, duration_ms, claim_lost, created_at
		FROM attempts WHERE issuer_id = $1 AND order_id = $2 ORDER BY id DESC LIMIT $3`,
		issuer, id, maxTimeline).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var a Attempt
			var ms int64
			err := rows.Scan(&a.ID, &a.Kind, &a.Outcome, &a.Reason, &a.HTTPStatus, &a.ErrorCode, &a.ErrorText,
				&a.OperationID, &a.CorrelationID, &a.StartedAt, &ms, &a.ClaimLost, &a.CreatedAt)
			a.Duration = time.Duration(ms) * time.Millisecond
			entries = append(entries, Entry{At: a.CreatedAt, Attempt: &a})
			return err
		})
	})
	b.Queue(`
		SELECT id, coalesce(operation_id, ''), outcome, coalesce(correlation_id, ''), times_seen, created_at, last_seen_at,
			digest, CASE WHEN octet_length(body) <= $4 THEN body END
		FROM notifications WHERE issuer_id = $1 AND order_id = $2 ORDER BY id DESC LIMIT $3`,
		issuer, id, maxTimeline, maxTimelineBody).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var n Received
			var digest, body []byte
			err := rows.Scan(&n.ID, &n.OperationID, &n.Outcome, &n.CorrelationID, &n.TimesSeen, &n.CreatedAt, &n.LastSeenAt, &digest, &body)
			if err == nil && body != nil {
				if n.Body, err = s.cfg.Seal.open(body, columnNotification, issuer, string(digest)); err != nil {
					unopened, err = unopened+1, nil // that it came shows all the same
				}
			}
			entries = append(entries, Entry{At: n.CreatedAt, Notification: &n})
			return err
		})
	})
	b.Queue(`
		SELECT id, body, author, created_at FROM order_notes WHERE issuer_id = $1 AND order_id = $2 ORDER BY created_at DESC, id DESC LIMIT $3`,
		issuer, id, maxTimeline).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var n Note
			var body []byte
			err := rows.Scan(&n.ID, &body, &n.Author, &n.CreatedAt)
			if err == nil {
				if n.Text, err = s.openNote(issuer, id, n.ID, body); err != nil {
					unopened, err = unopened+1, nil
				}
			}
			entries = append(entries, Entry{At: n.CreatedAt, Note: &n})
			return err
		})
	})
	b.Queue(`SELECT `+changeColumns+` FROM order_changes c WHERE c.issuer_id = $1 AND c.order_id = $2 ORDER BY c.id DESC LIMIT $3`,
		issuer, id, maxTimeline).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var c Change
			err := rows.Scan(changeFields(&c)...)
			entries = append(entries, Entry{At: c.CreatedAt, Change: &c})
			return err
		})
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("reading a timeline: %w", err)
	}
	if len(entries) == 0 {
		return nil, ErrNotFound
	}
	if unopened > 0 {
		s.cfg.Log.Error("what belongs to a timeline cannot be opened: a sealing key is missing", "orderId", id, "count", unopened)
	}
	slices.Reverse(entries)
	// Events keep the order of their seq even if the database's clock was set
	// back between two of them.
	var latest time.Time
	for i := range entries {
		if e := &entries[i]; e.Event != nil {
			if e.At.Before(latest) {
				e.At = latest
			}
			latest = e.At
		}
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.At.Compare(b.At) })
	return entries, nil
}

func each(rows pgx.Rows, f func() error) error {
	for rows.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Cause says why an order changed.
type Cause struct {
	Kind   CauseKind
	ID     string // of the attempt or notification
	Actor  string // client or person
	Detail json.RawMessage
	Action EventType // what somebody wanted, "" when the change itself tells; written only
}

// fromD1 tells whether D1 said something.
func (c Cause) fromD1() bool {
	return c.Kind == CauseAttempt || c.Kind == CauseNotification || c.Kind == CauseReconciliation
}

// CauseKind is where a change came from.
type CauseKind string

const (
	CauseRequest      CauseKind = "request"
	CauseAttempt      CauseKind = "attempt"
	CauseNotification CauseKind = "notification"
	// CauseReconciliation is an attempt that asked D1 and found what no notification
	// had told.
	CauseReconciliation CauseKind = "reconciliation"
	CauseTime           CauseKind = "time"   // nothing but the passing of time
	CauseImport         CauseKind = "import" // what an older system knew
)

// EventType is what kind of change an event records.
type EventType string

const (
	EventAccepted         EventType = "accepted"
	EventImported         EventType = "imported" // placed by an older system
	EventStatusChanged    EventType = "status-changed"
	EventAttentionChanged EventType = "attention-changed"
	EventDetailsChanged   EventType = "details-changed"
	EventLateChanged      EventType = "late-changed"
	EventRefreshRequested EventType = "refresh-requested" // D1 is to be asked
	EventRetryRequested   EventType = "retry-requested"   // its sending begins anew
	EventChangeChanged    EventType = "change-changed"    // a change of it was wanted, or has another state
)
