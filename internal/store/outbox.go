package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Message is a claimed message: an order to submit, or to ask D1 about when it
// is unknown whether D1 has it.
type Message struct {
	ID       int64
	Token    uuid.UUID // every result must match it
	Kind     MessageKind
	Class    Class
	IssuerID string
	OrderID  uuid.UUID
	CardID   string
	// IssuerRequestID is what D1 knows the order by.
	IssuerRequestID string
	Production      order.Production // complete; empty when Err is set
	Err             error            // the sealed content could not be read

	Tries       int       // calls since the last progress
	FirstSentAt time.Time // the first moment at which a byte may have left, by the database's clock
	SentBefore  bool      // FirstSentAt is older than this claim
	// RefusedFor is for how long D1 has refused the order, and nothing else, in a
	// way that need not be the order's fault.
	RefusedFor time.Duration
	// MaybeSent tells that D1 may have the order: it must be asked, and nothing
	// be sent. SentAgo is how long ago the last byte may have left.
	MaybeSent bool
	SentAgo   time.Duration
	Asks      int  // questions asked so far
	Negatives int  // of them, answers that count as "not there"
	ResendOff bool // never send again, only ask
	Resends   int  // how often it was sent again after D1 did not show it

	AcceptedAt time.Time     // when the order was accepted, by the database's clock
	ClaimedAt  time.Time     // the same of this claim
	TryingFor  time.Duration // waits between tries that count towards giving up
}

// MessageKind is what a message is for.
type MessageKind string

const (
	KindSubmit MessageKind = "submit" // bring the order to D1
	KindAsk    MessageKind = "ask"    // ask D1 how it stands
)

// Class keeps orders that come one by one from waiting behind those that come by the
// million.
type Class int16

const (
	ClassSingle   Class = 0
	ClassBatch    Class = 1
	ClassQuestion Class = 2 // only asks: nothing of it is sent
)

// Classes lists them all.
var Classes = []Class{ClassSingle, ClassBatch, ClassQuestion}

func (c Class) String() string {
	switch c {
	case ClassBatch:
		return "batch"
	case ClassQuestion:
		return "question"
	default:
		return "single"
	}
}

// ClaimRequest says what to claim.
type ClaimRequest struct {
	Lane  string
	Class Class
	Limit int           // messages at most
	Lease time.Duration // until when they are the claimer's
}

// Claim takes up to limit messages of a lane and class that are due, until lease has
// passed on the database's clock. A message whose lease ran out under another
// worker is due again, and its outcome is unknown: a byte may have left until
// the very end of that lease.
//
// One card at a time: a message waits while an earlier one of its card exists.
func (s *Store) Claim(ctx context.Context, c ClaimRequest) ([]Message, error) {
	token, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a claim token: %w", err)
	}
	rows, err := s.pool.Query(ctx, `
		WITH due AS (
			SELECT m.id, m.first_sent_at IS NOT NULL AS sent_before FROM outbox m
			WHERE m.lane = $1 AND m.class = $5 AND m.run_at <= now()
				AND NOT EXISTS (SELECT FROM outbox e
					WHERE e.issuer_id = m.issuer_id AND e.card_id = m.card_id AND e.id < m.id)
			ORDER BY m.run_at LIMIT $2
			FOR UPDATE OF m SKIP LOCKED
		), claimed AS (
			UPDATE outbox m SET
				claim_token = $3, run_at = now() + $4::interval,
				first_sent_at = coalesce(m.first_sent_at, now()),
				maybe_sent_at = coalesce(m.maybe_sent_at, CASE WHEN m.claim_token IS NOT NULL THEN m.run_at END)
			FROM due WHERE m.id = due.id
			RETURNING m.*, due.sent_before
		)
		SELECT c.id, c.issuer_id, c.order_id, c.card_id, o.issuer_request_id, c.tries, c.first_sent_at, c.sent_before,
			coalesce(now() - c.refused_since, '0'), c.maybe_sent_at IS NOT NULL, coalesce(now() - c.maybe_sent_at, '0'),
			c.asks, c.negatives, c.resend_off, c.resends, p.production, p.encrypted_data
		FROM claimed c JOIN orders o ON o.issuer_id = c.issuer_id AND o.id = c.order_id
			LEFT JOIN order_payload p ON p.issuer_id = c.issuer_id AND p.order_id = c.order_id
		ORDER BY c.id`,
		c.Lane, c.Limit, token, c.Lease, c.Class)
	if err != nil {
		return nil, fmt.Errorf("claiming messages: %w", err)
	}
	messages, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Message, error) {
		m := Message{Token: token}
		var sealed sealedPayload
		err := row.Scan(&m.ID, &m.IssuerID, &m.OrderID, &m.CardID, &m.IssuerRequestID, &m.Tries, &m.FirstSentAt, &m.SentBefore,
			&m.RefusedFor, &m.MaybeSent, &m.SentAgo, &m.Asks, &m.Negatives, &m.ResendOff, &m.Resends, &sealed.production, &sealed.encryptedData)
		if err == nil {
			m.Production, m.Err = s.openProduction(m.IssuerID, m.OrderID, sealed)
		}
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("claiming messages: %w", err)
	}
	return messages, nil
}

var errTodo = errors.New("not yet")

// ClaimProbe takes one message of a stopped lane, when its next probe is due, and
// puts the probe after it off.
func (s *Store) ClaimProbe(ctx context.Context, lane string, lease time.Duration) ([]Message, error) {
	return nil, errTodo
}

// openProduction reads one message's content. A row that cannot be read is that
// row's trouble and must not strand the others of its batch.
func (s *Store) openProduction(issuer string, id uuid.UUID, sealed sealedPayload) (order.Production, error) {
	var p order.Production
	plain, err := s.cfg.Seal.open(sealed.production, columnProduction, issuer, id.String())
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(plain, &p); err != nil {
		return order.Production{}, fmt.Errorf("decoding %s: the content is not what was sealed", columnProduction)
	}
	encryptedData, err := s.cfg.Seal.open(sealed.encryptedData, columnEncryptedData, issuer, id.String())
	if err != nil {
		return order.Production{}, err
	}
	p.EncryptedData = string(encryptedData)
	return p, nil
}

// Release gives back messages of which certainly no byte was sent.
func (s *Store) Release(ctx context.Context, messages []Message) error {
	if len(messages) == 0 {
		return nil
	}
	ids, tokens := claims(messages)
	before := make([]bool, len(messages))
	for i, m := range messages {
		before[i] = m.SentBefore
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			UPDATE outbox m SET claim_token = NULL, run_at = now(),
				first_sent_at = CASE WHEN t.sent_before THEN m.first_sent_at END
			FROM unnest($1::bigint[], $2::uuid[], $3::boolean[]) AS t(id, token, sent_before)
			WHERE m.id = t.id AND m.claim_token = t.token`, ids, tokens, before)
		return err
	})
	if err != nil {
		return fmt.Errorf("giving messages back: %w", err)
	}
	return nil
}

// Holds tells whether a claim still holds: the message is neither another
// worker's nor retired by evidence from D1.
func (s *Store) Holds(ctx context.Context, m Message) (bool, error) {
	var held bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox WHERE id = $1 AND claim_token = $2)`, m.ID, m.Token).Scan(&held)
	if err != nil {
		return false, fmt.Errorf("looking for a claim: %w", err)
	}
	return held, nil
}

func claims(messages []Message) (ids []int64, tokens []uuid.UUID) {
	for _, m := range messages {
		ids, tokens = append(ids, m.ID), append(tokens, m.Token)
	}
	return ids, tokens
}

// Completion is what came of a claimed message.
type Completion struct {
	Message  Message
	Attempt  Attempt
	Seen     []string         // PRODUCE operations that D1 showed for the order
	Evidence []order.Evidence // how the order advances, if the claim still holds
	Next     Next             // what becomes of the message, if the order still waits
}

// Attempt is one call to D1 and its answer.
type Attempt struct {
	ID            uuid.UUID
	Kind          AttemptKind
	Outcome       string
	Reason        string // of a closed set
	HTTPStatus    int
	ErrorCode     string
	ErrorText     string // D1's, reduced to words that cannot be data
	OperationID   string
	CorrelationID string
	StartedAt     time.Time
	Duration      time.Duration
	ClaimLost     bool // another worker had taken over when it was stored
	CreatedAt     time.Time
}

// AttemptKind is what D1 was asked to do.
type AttemptKind string

const (
	AttemptSubmit AttemptKind = "submit"
	AttemptAsk    AttemptKind = "ask"
)

// Next is the new content of a message that stays.
type Next struct {
	RunIn     time.Duration
	Tries     int
	Asks      int
	Negatives int
	ResendOff bool
	Unsent    bool // D1 certainly did not take this call: as if it had not been made
	Refused   bool // D1 refused, but perhaps not for the order's own fault
	// RejectAfter is for how long, since the first refusal, such a refusal proves
	// nothing: the card may be registered at D1 a moment later.
	RejectAfter time.Duration
	StopAfter   int  // so many different orders refused, with none accepted between, stop the lane
	Burns       bool // RunIn counts towards giving up
	GiveUp      bool // never try again by itself
	Done        bool // a question that is over
	// Maybe says whether D1 may have the order.
	Maybe Maybe
}

// Maybe is what a call teaches about whether D1 may have the order.
type Maybe int

const (
	MaybeKeep  Maybe = iota // nothing new
	MaybeNow                // a byte may have left until now
	MaybeClear              // D1 certainly does not have it
)

// Complete stores what came of calls: all of them in one transaction. An
// attempt and its operations are facts and are stored always; an order and its
// message change only while the claim holds.
func (s *Store) Complete(ctx context.Context, completions []Completion) error {
	var parked []int64
	var locked map[orderKey]*lockedOrder
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		locked, parked, err = s.complete(ctx, tx, completions)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing what came of calls: %w", err)
	}
	s.logChanges(ctx, locked)
	if len(parked) > 0 {
		s.cfg.OnParked(parked)
	}
	return nil
}

func (s *Store) complete(ctx context.Context, tx pgx.Tx, completions []Completion) (locked map[orderKey]*lockedOrder, parked []int64, err error) {
	// By card, as all transactions that come to card_guard with several orders do.
	slices.SortFunc(completions, func(x, y Completion) int {
		return cmp.Or(cmp.Compare(x.Message.IssuerID, y.Message.IssuerID), cmp.Compare(x.Message.CardID, y.Message.CardID),
			cmp.Compare(x.Message.ID, y.Message.ID))
	})
	var keys []orderKey
	var seen []operation
	var issuers, operationIDs []string
	messages := make([]Message, len(completions))
	for i, c := range completions {
		key := orderKey{c.Message.IssuerID, c.Message.OrderID}
		keys = append(keys, key)
		messages[i] = c.Message
		for _, id := range c.Seen {
			seen = append(seen, operation{key, id, string(c.Attempt.Kind)})
			issuers, operationIDs = append(issuers, key.issuer), append(operationIDs, id)
		}
	}
	locked, owners, err := lockOrders(ctx, tx, keys, seen)
	if err != nil {
		return nil, nil, err
	}
	held, err := lockClaims(ctx, tx, messages)
	if err != nil {
		return nil, nil, err
	}
	var b pgx.Batch
	for i := range completions {
		c := &completions[i]
		o := locked[keys[i]]
		if o == nil {
			continue // erased in the meantime
		}
		s.queueCompletion(&b, c, o, held[claim{c.Message.ID, c.Message.Token}], owners)
	}
	if len(operationIDs) > 0 {
		b.Queue(`
			SELECT n.id FROM unnest($1::text[], $2::text[]) AS t(issuer_id, operation_id)
			JOIN notifications n ON n.issuer_id = t.issuer_id AND n.operation_id = t.operation_id AND n.outcome = 'parked'`,
			issuers, operationIDs).Query(func(rows pgx.Rows) (err error) {
			parked, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
	}
	return locked, parked, send(ctx, tx, &b)
}

// claim is one claim of a message: a batch may hold two of the same message, of
// which one is lost.
type claim struct {
	id    int64
	token uuid.UUID
}

// lockClaims locks the messages that are still claimed by the given tokens.
func lockClaims(ctx context.Context, tx pgx.Tx, messages []Message) (map[claim]bool, error) {
	ids, tokens := claims(messages)
	rows, err := tx.Query(ctx, `
		SELECT m.id, m.claim_token FROM outbox m JOIN unnest($1::bigint[], $2::uuid[]) AS t(id, token)
			ON m.id = t.id AND m.claim_token = t.token
		ORDER BY m.id FOR UPDATE OF m`, ids, tokens)
	if err != nil {
		return nil, fmt.Errorf("locking messages: %w", err)
	}
	held := make(map[claim]bool, len(messages))
	var c claim
	if _, err := pgx.ForEachRow(rows, []any{&c.id, &c.token}, func() error { held[c] = true; return nil }); err != nil {
		return nil, fmt.Errorf("locking messages: %w", err)
	}
	return held, nil
}

func (s *Store) queueCompletion(b *pgx.Batch, c *Completion, o *lockedOrder, held bool, owners map[string]orderKey) {
	queueAttempt(b, o.orderKey, c.Attempt, !held)
	evidence, next := c.Evidence, c.Next
	for _, id := range c.Seen {
		if owners[id] != o.orderKey {
			// Adopting another order's operation would hide a lost card.
			evidence = []order.Evidence{order.Notice{Attention: order.AttentionForeignOperation}, order.LostAnswer{}}
			next = Next{RunIn: time.Minute, Asks: c.Next.Asks + 1, ResendOff: true, Maybe: MaybeNow}
		}
	}
	if !held {
		evidence = nil
	} else if o.state.OperationID == "" && len(c.Seen) == 0 && len(o.operations) > 0 {
		// An answer that came when its claim was lost told of an operation: D1 has
		// the order, whatever this call did not see.
		evidence = []order.Evidence{order.Taken{OperationID: o.operations[0]}}
	}
	s.queueAdvance(b, o, Cause{Kind: CauseAttempt, ID: c.Attempt.ID.String()}, evidence...)
	if !held {
		return
	}
	if !next.Unsent {
		exec(b, `UPDATE order_state SET first_sent_at = $3 WHERE issuer_id = $1 AND order_id = $2 AND first_sent_at IS NULL`,
			o.issuer, o.id, c.Message.FirstSentAt)
	}
	if o.state.Waiting() {
		queueNext(b, c.Message, next)
	}
}

// queueNext reschedules a message; only the claim's holder can.
func queueNext(b *pgx.Batch, m Message, next Next) {
	exec(b, `
		UPDATE outbox SET claim_token = NULL, run_at = now() + $3::interval,
			tries = $4, asks = $5, negatives = $6, resend_off = resend_off OR $7,
			maybe_sent_at = CASE $8::int WHEN 0 THEN maybe_sent_at WHEN 1 THEN now() END,
			first_sent_at = CASE WHEN $9 THEN NULL ELSE first_sent_at END,
			refused_since = CASE WHEN $10 THEN coalesce(refused_since, now()) WHEN $11 THEN refused_since END,
			resends = resends + CASE $8::int WHEN 2 THEN 1 ELSE 0 END
		WHERE id = $1 AND claim_token = $2`,
		m.ID, m.Token, next.RunIn, next.Tries, next.Asks, next.Negatives, next.ResendOff,
		int(next.Maybe), next.Unsent && !m.SentBefore, next.Refused, next.Unsent)
}

func queueAttempt(b *pgx.Batch, key orderKey, a Attempt, claimLost bool) {
	var status *int
	if a.HTTPStatus != 0 {
		status = &a.HTTPStatus
	}
	exec(b, `
		INSERT INTO attempts (issuer_id, order_id, id, kind, outcome, reason, http_status, error_code, error_text,
			operation_id, correlation_id, started_at, duration_ms, claim_lost)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
		ON CONFLICT DO NOTHING`,
		key.issuer, key.id, a.ID, a.Kind, a.Outcome, a.Reason, status, optional(a.ErrorCode), optional(a.ErrorText),
		optional(a.OperationID), a.CorrelationID, a.StartedAt, a.Duration.Milliseconds(), claimLost)
}

// OperationOwners returns which of the given operations belong to which orders.
func (s *Store) OperationOwners(ctx context.Context, issuer string, operationIDs []string) (map[string]uuid.UUID, error) {
	rows, err := s.pool.Query(ctx, `SELECT operation_id, order_id FROM operations WHERE issuer_id = $1 AND operation_id = ANY($2)`,
		issuer, operationIDs)
	if err != nil {
		return nil, fmt.Errorf("looking up operations: %w", err)
	}
	owners := make(map[string]uuid.UUID)
	var operationID string
	var orderID uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&operationID, &orderID}, func() error { owners[operationID] = orderID; return nil })
	if err != nil {
		return nil, fmt.Errorf("looking up operations: %w", err)
	}
	return owners, nil
}

// Doubts tells what else may be behind an operation of the card that names no
// request, and behind D1's silence. sibling: another order of the card was sent,
// and its operation is not known. parked: since this order was first sent, D1 has
// told of an operation of the card that found no order.
func (s *Store) Doubts(ctx context.Context, m Message) (sibling, parked bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				WHERE o.issuer_id = $1 AND o.card_id = $2 AND o.id <> $3
					AND s.first_sent_at IS NOT NULL AND s.operation_id IS NULL AND s.status <> 'REJECTED'),
			EXISTS (SELECT FROM notifications n
				WHERE n.issuer_id = $1 AND n.card_id = $2 AND n.outcome = 'parked' AND n.created_at >= $4)`,
		m.IssuerID, m.CardID, m.OrderID, m.FirstSentAt).Scan(&sibling, &parked)
	if err != nil {
		return false, false, fmt.Errorf("looking for doubts about a card: %w", err)
	}
	return sibling, parked, nil
}

// KnownCard returns a card of the issuer that D1 certainly has and had time to
// show: the newest with an operation whose order is older than age. ErrNotFound
// when there is none.
func (s *Store) KnownCard(ctx context.Context, issuer string, age time.Duration) (string, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT o.card_id FROM operations p JOIN orders o ON o.issuer_id = p.issuer_id AND o.id = p.order_id
		WHERE p.issuer_id = $1 AND p.operation = 'PRODUCE' AND p.order_id < $2 AND p.created_at < now() - $3::interval
		ORDER BY p.order_id DESC LIMIT 1`, issuer, idsBefore(time.Now().Add(-age)), age)
	if err != nil {
		return "", fmt.Errorf("looking for a known card: %w", err)
	}
	card, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("looking for a known card: %w", err)
	}
	if len(card) == 0 {
		return "", ErrNotFound
	}
	return card[0], nil
}

// idsBefore is greater than every order id made before t: they are UUIDv7, which
// begin with the time in milliseconds (RFC 9562).
func idsBefore(t time.Time) uuid.UUID {
	var id uuid.UUID
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(max(0, t.UnixMilli())))
	copy(id[:6], ms[2:])
	return id
}
