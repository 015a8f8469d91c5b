package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

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
	Body            []byte // what D1 is sent; nil when Err is set
	Err             error  // the sealed content could not be read

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
	// Halted: somebody wanted the order held or cancelled while a worker of the release
	// before had it, which does not look. It is to be released, not to be sent.
	Halted  bool
	Resends int // how often it was sent again after D1 did not show it

	AcceptedAt time.Time     // when the order was accepted, by the database's clock
	ClaimedAt  time.Time     // the same of this claim
	TryingFor  time.Duration // waits between tries that count towards giving up

	Change *ChangeMessage // of KindChange

	reached time.Time // since when the last message of the same claim was due
}

// MessageKind is what a message is for.
type MessageKind string

const (
	KindSubmit MessageKind = "submit" // bring the order to D1
	KindAsk    MessageKind = "ask"    // ask D1 how it stands
	KindChange MessageKind = "change" // have D1 change it
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
// Nothing is claimed of a lane that is paused or stopped, nor while the database is in
// another history than the one remembered: the claim itself looks, so that both hold
// for all processes at once.
//
// One card at a time: a message to send waits while an earlier one of its card is to be
// sent, and while any other one is claimed or its outcome unknown.
func (s *Store) Claim(ctx context.Context, c ClaimRequest) ([]Message, error) {
	floor := s.floors.of(c)
	messages, err := s.claim(ctx, claimDue, c.Lane, c.Class, c.Limit, c.Lease, floor)
	if missing := c.Limit - len(messages); err == nil && missing > 0 && !floor.IsZero() {
		var front []Message
		floor = time.Time{}
		front, err = s.claim(ctx, claimDue, c.Lane, c.Class, missing, c.Lease, floor)
		messages = append(messages, front...)
	}
	if err != nil && len(messages) == 0 {
		return nil, fmt.Errorf("claiming messages: %w", err)
	}
	s.floors.learn(c, floor, messages)
	return messages, nil
}

// ClaimProbe takes one message of a stopped lane, when its next probe is due, and
// puts the probe after it off. Messages of both classes take turns: those that were
// refused wait a while. When there is nothing to send, a question may be the probe.
func (s *Store) ClaimProbe(ctx context.Context, lane string, lease time.Duration) ([]Message, error) {
	messages, err := s.claim(ctx, claimProbe, lane, ClassSingle, 1, lease, time.Time{})
	if err != nil {
		return nil, fmt.Errorf("claiming a probe: %w", err)
	}
	if len(messages) > 0 {
		// An answer that was being stored when the lane stopped may have set its message
		// aside all the same.
		if err := s.inTx(ctx, func(tx pgx.Tx) error { return s.letGo(ctx, tx, lane, nil) }); err != nil {
			s.cfg.Log.Error("what was refused before the lane stopped could not be let go", "lane", lane, "error", err)
		}
	}
	return messages, nil
}

// steadyPlans keeps the plans of the statements after it from depending on statistics,
// which are always old for tables that fill and empty within minutes: they go through
// indexes. It holds for the transaction, and a batch is one.
const steadyPlans = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
	set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)`

// sortOff does the same for statements that have to read an index in its order.
const (
	sortOff = `SELECT set_config('enable_sort', 'off', true)`
	sortOn  = `SELECT set_config('enable_sort', 'on', true)`
)

// sameHistory is true while the database is in the history that CheckTimeline
// remembered, and before it remembered any.
const sameHistory = `NOT EXISTS (SELECT FROM database_history h
	WHERE h.only_row AND (h.timeline <> ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
		OR h.system_identifier <> (SELECT system_identifier FROM pg_control_system())))`

func inSameHistory(ctx context.Context, tx pgx.Tx) (same bool, err error) {
	if err = tx.QueryRow(ctx, `SELECT `+sameHistory).Scan(&same); err != nil {
		err = fmt.Errorf("looking at the database's history: %w", err)
	}
	return same, err
}

// claimable is true for messages m that may be claimed as far as their card is
// concerned. D1 is asked at any time about what it may have: that sends nothing; and a
// change is of an order that it has.
const claimable = `(m.kind <> 'submit' OR m.maybe_sent_at IS NOT NULL OR m.claim_token IS NOT NULL
	OR NOT EXISTS (SELECT FROM outbox e
		WHERE e.issuer_id = m.issuer_id AND e.card_id = m.card_id AND e.id <> m.id AND e.kind = 'submit'
			AND (e.id < m.id AND e.run_at < 'infinity' OR e.claim_token IS NOT NULL OR e.maybe_sent_at IS NOT NULL)))`

// due is true for messages m whose time has come and that nobody holds. A claim leaves
// run_at alone, or it would write an entry into every index; so scans pass those that are
// held, which are few: what the replicas have open or claimed ahead.
const due = `m.run_at <= now() AND (m.leased_until IS NULL OR m.leased_until <= now())`

// claimDue claims what is due of a lane that runs, from a given run_at on.
const claimDue = `
	WITH due AS MATERIALIZED (
		SELECT m.id, m.run_at FROM outbox m
		WHERE m.lane = $1 AND m.class = $2 AND ` + due + ` AND m.run_at >= $6
			AND NOT EXISTS (SELECT FROM lanes l WHERE l.lane = $1 AND (l.paused_at IS NOT NULL OR l.stopped_at IS NOT NULL))
			AND ` + sameHistory + ` AND ` + claimable + `
		ORDER BY m.run_at LIMIT $3
		FOR UPDATE OF m SKIP LOCKED
	), ` + claimRest

// claimProbe claims the message that has been due for longest of a stopped lane, of
// single orders and of batches in turn: behind a batch that is refused as a whole no
// single order would come in time.
const claimProbe = `
	WITH turn AS (
		SELECT l.lane, (l.probes % 2)::smallint AS class FROM lanes l
		WHERE l.lane = $1 AND l.stopped_at IS NOT NULL AND l.paused_at IS NULL AND l.probe_at <= now() AND ` + sameHistory + `
		FOR UPDATE SKIP LOCKED
	), candidates AS MATERIALIZED (
		SELECT p.*, c.class = turn.class AS first FROM turn, (VALUES ($2::smallint), (1::smallint)) AS c(class) CROSS JOIN LATERAL (
			SELECT m.id, m.run_at FROM outbox m
			WHERE m.lane = $1 AND m.class = c.class AND ` + due + ` AND m.run_at >= $6
				AND m.kind = 'submit' AND m.maybe_sent_at IS NULL AND m.claim_token IS NULL AND ` + claimable + `
			ORDER BY m.run_at LIMIT $3
			FOR UPDATE OF m SKIP LOCKED) p
	), questions AS MATERIALIZED (
		SELECT p.*, false AS first FROM turn, (VALUES (2::smallint), (0::smallint), (1::smallint)) AS c(class) CROSS JOIN LATERAL (
			SELECT m.id, m.run_at FROM outbox m
			WHERE m.lane = $1 AND m.class = c.class AND ` + due + ` AND NOT EXISTS (SELECT FROM candidates)
				AND (m.kind <> 'submit' OR m.maybe_sent_at IS NOT NULL OR m.claim_token IS NOT NULL)
			ORDER BY m.run_at LIMIT $3
			FOR UPDATE OF m SKIP LOCKED) p
	), due AS MATERIALIZED (
		SELECT id, run_at FROM (SELECT * FROM candidates UNION ALL SELECT * FROM questions) a ORDER BY first DESC, run_at LIMIT 1
	), moved AS (
		UPDATE lanes SET probes = probes + 1, probe_at = now() + least(interval '1 min', interval '1 s' * 2 ^ least(probes, 6)), updated_at = now()
		WHERE lane = $1 AND EXISTS (SELECT FROM due)
	), ` + claimRest

// claimRest claims the messages in due. A new first_sent_at is the time of the
// transaction, by which an old one is told. The release before wrote the end of a lease
// into run_at. For what is no change, order_changes is not looked at; for what is, the
// order leaves one index to look it up by, whatever the statistics say.
const claimRest = `claimed AS (
		UPDATE outbox m SET
			claim_token = $4, leased_until = now() + $5::interval,
			first_sent_at = CASE m.kind WHEN 'ask' THEN m.first_sent_at ELSE coalesce(m.first_sent_at, now()) END,
			maybe_sent_at = CASE m.kind WHEN 'submit' THEN coalesce(m.maybe_sent_at, CASE WHEN m.claim_token IS NOT NULL THEN greatest(m.run_at, m.leased_until) END) END
		WHERE m.id = ANY (ARRAY(SELECT id FROM due))
		RETURNING m.*
	)
	SELECT c.id, c.kind, c.class, c.issuer_id, c.order_id, c.card_id, o.issuer_request_id, c.tries, c.first_sent_at,
		c.first_sent_at IS DISTINCT FROM now() AND c.first_sent_at IS NOT NULL,
		coalesce(now() - c.refused_since, '0'), c.maybe_sent_at IS NOT NULL, coalesce(now() - c.maybe_sent_at, '0'),
		c.asks, c.negatives, c.resend_off, c.resends, c.halt IS NOT NULL AND c.maybe_sent_at IS NULL,
		o.created_at, now(), c.trying_for,
		(SELECT max(run_at) FROM due), p.production, p.encrypted_data, h.id, h.type, h.address
	FROM claimed c JOIN orders o ON o.issuer_id = c.issuer_id AND o.id = c.order_id
		LEFT JOIN order_payload p ON p.issuer_id = c.issuer_id AND p.order_id = c.order_id AND c.kind <> 'change'
		LEFT JOIN LATERAL (SELECT h.id, h.type, h.address FROM order_changes h
			WHERE c.change_id IS NOT NULL AND h.issuer_id = c.issuer_id AND h.id = c.change_id ORDER BY h.id LIMIT 1) h ON true`

func (s *Store) claim(ctx context.Context, sql, lane string, class Class, limit int, lease time.Duration, floor time.Time) ([]Message, error) {
	token, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a claim token: %w", err)
	}
	var messages []Message
	var b pgx.Batch
	exec(&b, steadyPlans)
	exec(&b, sortOff)
	b.Queue(sql, lane, class, limit, token, lease, orFirst(floor)).Query(func(rows pgx.Rows) (err error) {
		messages, err = pgx.AppendRows(make([]Message, 0, min(limit, 256)), rows, func(row pgx.CollectableRow) (Message, error) {
			m := Message{Token: token}
			var production, encryptedData pgtype.DriverBytes // good until the next row
			var orderID pgtype.UUID
			var firstSentAt pgtype.Timestamptz
			var change claimedChange
			err := row.Scan(&m.ID, &m.Kind, &m.Class, &m.IssuerID, &orderID, &m.CardID, &m.IssuerRequestID, &m.Tries, &firstSentAt, &m.SentBefore,
				&m.RefusedFor, &m.MaybeSent, &m.SentAgo, &m.Asks, &m.Negatives, &m.ResendOff, &m.Resends, &m.Halted,
				&m.AcceptedAt, &m.ClaimedAt, &m.TryingFor, &m.reached, &production, &encryptedData,
				&change.id, &change.kind, &change.address)
			m.OrderID, m.FirstSentAt = orderID.Bytes, firstSentAt.Time
			switch {
			case err != nil:
			case m.Kind == KindChange:
				m.Change, m.Body, m.Err = s.openChangeBody(&m, change)
			default:
				m.Body, m.Err = s.openBody(m.IssuerID, m.OrderID, sealedPayload{production, encryptedData})
			}
			return m, err
		})
		return err
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, err
	}
	slices.SortFunc(messages, func(x, y Message) int { return cmp.Compare(x.ID, y.ID) })
	return messages, nil
}

// floors remember how far claims have come through the messages of a lane and class, so
// that the next one need not pass all that were claimed before: as long as anybody
// holds an old snapshot, their places in the index cannot be cleared. Now and then a
// claim begins at the front again, for messages that came to lie before the floor: given
// back, or committed late.
type floors struct {
	mu sync.Mutex
	m  map[laneClass]floor
}

type laneClass struct {
	lane  string
	class Class
}

type floor struct {
	at    time.Time // claims begin here
	until time.Time // by this process's clock: then one begins at the front
}

// floorLife bounds for how long a message before the floor can be overlooked.
const floorLife = 500 * time.Millisecond

// of returns where a claim begins: zero for the front.
func (f *floors) of(c ClaimRequest) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.m[laneClass{c.Lane, c.Class}]
	if time.Now().After(known.until) {
		return time.Time{}
	}
	return known.at
}

// learn takes note of what a claim from a floor found. There are more messages only if
// it found as many as it wanted.
func (f *floors) learn(c ClaimRequest, from time.Time, found []Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := laneClass{c.Lane, c.Class}
	if len(found) < c.Limit || len(found) == 0 {
		delete(f.m, key)
		return
	}
	next := floor{found[0].reached, f.m[key].until}
	if from.IsZero() {
		next.until = time.Now().Add(floorLife)
	}
	if f.m == nil {
		f.m = make(map[laneClass]floor)
	}
	f.m[key] = next
}

// openBody puts together what D1 is sent: the production request as it was sealed, and
// the encrypted card data. It was made here and is authentic, so it is not decoded once
// more. A row that cannot be read is that row's trouble and must not strand the others
// of its batch.
func (s *Store) openBody(issuer string, id uuid.UUID, sealed sealedPayload) ([]byte, error) {
	production, err := s.cfg.Seal.open(sealed.production, columnProduction, issuer, id.String())
	if err != nil {
		return nil, err
	}
	encryptedData, err := s.cfg.Seal.open(sealed.encryptedData, columnEncryptedData, issuer, id.String())
	if err != nil {
		return nil, err
	}
	body, closed := bytes.CutSuffix(production, []byte("}"))
	if !closed || !bytes.HasPrefix(body, []byte(`{"`)) {
		return nil, fmt.Errorf("reading %s: the content is not what was sealed", columnProduction)
	}
	if len(encryptedData) == 0 {
		return production, nil
	}
	quoted, err := json.Marshal(string(encryptedData))
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", columnEncryptedData, err)
	}
	return slices.Concat(body, []byte(`,"encryptedData":`), quoted, []byte("}")), nil
}

// Release gives back messages of which certainly no byte was sent. What somebody wanted
// held or cancelled meanwhile is held or cancelled.
func (s *Store) Release(ctx context.Context, messages []Message) error {
	if len(messages) == 0 {
		return nil
	}
	ids, tokens := claimColumns(claims(messages))
	before := make([]bool, len(messages))
	for i, m := range messages {
		before[i] = m.SentBefore
	}
	var released int
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			UPDATE outbox m SET claim_token = NULL, leased_until = NULL,
				class = CASE WHEN m.maybe_sent_at IS NULL THEN m.class ELSE $4 END, -- a lapsed lease, which is asked about
				first_sent_at = CASE WHEN t.sent_before THEN m.first_sent_at END
			FROM unnest($1::bigint[], $2::uuid[], $3::boolean[]) AS t(id, token, sent_before)
			WHERE m.id = t.id AND m.claim_token = t.token AND (m.halt IS NULL OR m.maybe_sent_at IS NOT NULL)`, ids, tokens, before, ClassQuestion)
		released = int(tag.RowsAffected())
		return err
	})
	if err == nil && released < len(messages) {
		err = s.halt(ctx, messages)
	}
	if err != nil {
		return fmt.Errorf("giving messages back: %w", err)
	}
	return nil
}

// halt holds or cancels the orders of claimed messages for which somebody asked for that,
// and of which certainly nothing was sent.
func (s *Store) halt(ctx context.Context, messages []Message) error {
	keys := make([]orderKey, len(messages))
	for i := range messages {
		keys[i] = messages[i].key()
	}
	var locked map[orderKey]*lockedOrder
	err := s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if locked, err = lockOrders(ctx, tx, keys); err != nil {
			return err
		}
		held := make(map[claim]heldMessage, len(messages))
		var b pgx.Batch
		queueClaimLocks(&b, claims(messages), held)
		if err := send(ctx, tx, &b); err != nil {
			return err
		}
		w := advances{store: s}
		for i := range messages {
			h, ok := held[messages[i].claim()]
			if o := locked[keys[i]]; ok && o != nil && h.halt != "" && !h.maybe {
				w.advance(o, Cause{Kind: CauseRequest}, h.halt.evidence())
			}
		}
		var writes pgx.Batch
		w.queue(&writes)
		return send(ctx, tx, &writes)
	})
	if err == nil {
		s.logChanges(ctx, locked)
	}
	return err
}

// Holds tells whether a claim still holds and the order may be sent: its lease has not
// run out, though nobody may have taken over yet, as when the claimer's machine slept;
// the message is not retired by evidence from D1, and nobody wants the order held or
// cancelled.
func (s *Store) Holds(ctx context.Context, m Message) (bool, error) {
	var held bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outbox
		WHERE id = $1 AND claim_token = $2 AND halt IS NULL AND leased_until > now())`, m.ID, m.Token).Scan(&held)
	if err != nil {
		return false, fmt.Errorf("looking for a claim: %w", err)
	}
	return held, nil
}

func claims(messages []Message) []claim {
	list := make([]claim, len(messages))
	for i := range messages {
		list[i] = messages[i].claim()
	}
	return list
}

func claimColumns(claims []claim) (ids []int64, tokens uuids) {
	ids, tokens = make([]int64, len(claims)), make(uuids, len(claims))
	for i := range claims {
		ids[i], tokens[i] = claims[i].id, pgID(&claims[i].token)
	}
	return ids, tokens
}

// Completion is what came of a claimed message.
type Completion struct {
	Message   Message
	Attempt   Attempt
	Seen      []string         // PRODUCE operations that D1 showed for the order
	Others    []OrderOperation // the same for other orders of the card
	Shipments []ShipmentUpdate // what D1 showed of its parcels
	Evidence  []order.Evidence // how the order advances, if the claim still holds
	Change    *ChangeAnswer    // of KindChange: what D1 said; nil while it is unknown whether it has it
	Changes   []ShownChange    // what became of the order's changes, as D1 shows it
	Next      Next             // what becomes of the message, if the order still waits
}

// OrderOperation is a PRODUCE operation of an order.
type OrderOperation struct {
	OrderID     uuid.UUID
	OperationID string
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
	AttemptChange AttemptKind = "change"
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

// Complete stores what came of calls: all of them in one transaction, with as many
// statements for one as for many. An attempt and its operations are facts and are
// stored always; an order and its message change only while the claim holds.
func (s *Store) Complete(ctx context.Context, completions []Completion) error {
	if len(completions) == 0 {
		return nil
	}
	c := &completing{store: s, list: completions}
	if err := s.inTwoTrips(ctx, c.ask, c.answer); err != nil {
		return fmt.Errorf("storing what came of calls: %w", err)
	}
	s.logChanges(ctx, c.locked)
	if len(c.parked) > 0 {
		s.cfg.OnParked(c.parked)
	}
	for _, issuer := range c.lost {
		s.cfg.OnClaimLost(issuer)
	}
	c.judgeLanes(ctx)
	return nil
}

// completing is the storing of completions, while it is under way.
type completing struct {
	store *Store
	list  []Completion

	// What the first trip learns.
	locked    map[orderKey]*lockedOrder
	owners    map[string]orderKey
	held      map[claim]heldMessage
	lanes     map[string]*laneNews
	parked    []int64                        // notifications that wait for an operation that was seen
	shipments map[shipmentKey]ShipmentUpdate // of the orders of which D1 showed some

	shipped map[shipmentKey]ShipmentUpdate // what is written of them
	lost    []string                       // issuers of claims that were lost to another worker, not to evidence from D1
}

func (m *Message) claim() claim { return claim{m.ID, m.Token} }

func (m *Message) key() orderKey { return orderKey{m.IssuerID, m.OrderID} }

// claim is one claim of a message: a batch may hold two of the same message, of
// which one is lost.
type claim struct {
	id    int64
	token uuid.UUID
}

// heldMessage is what the holder of a claim has to know of its message.
type heldMessage struct {
	halt  BatchAction // hold or cancel that came after the claim
	maybe bool        // D1 may have the order
}

// ask queues what has to be known before anything is decided, locked in the order of
// all transactions.
func (c *completing) ask(b *pgx.Batch) {
	keys, held := make([]orderKey, len(c.list)), make([]claim, len(c.list))
	var others []orderKey
	var seen []operation
	c.locked, c.owners, c.lost = make(map[orderKey]*lockedOrder, len(keys)), make(map[string]orderKey), nil
	c.held, c.lanes = make(map[claim]heldMessage, len(keys)), make(map[string]*laneNews)
	c.shipments = make(map[shipmentKey]ShipmentUpdate)
	var shown []orderKey
	for i := range c.list {
		m := &c.list[i].Message
		keys[i], held[i] = m.key(), m.claim()
		for _, id := range c.list[i].Seen {
			seen = append(seen, operation{keys[i], id, string(c.list[i].Attempt.Kind)})
		}
		for _, other := range c.list[i].Others {
			key := orderKey{m.IssuerID, other.OrderID}
			others = append(others, key)
			seen = append(seen, operation{key, other.OperationID, string(c.list[i].Attempt.Kind)})
		}
		if len(c.list[i].Shipments) > 0 {
			shown = append(shown, keys[i])
		}
		c.lanes[LaneOf(m.IssuerID)] = &laneNews{}
	}
	orders := keysGiven(append(keys, others...))
	exec(b, steadyPlans)
	orders.queueLocks(b, c.locked)
	queueOperations(b, seen)
	queueClaimLocks(b, held, c.held)
	orders.queueKnownOperations(b, c.locked, c.owners)
	queueLaneNews(b, c.lanes)
	if len(shown) > 0 {
		queueKnownShipments(b, keysGiven(shown), c.shipments)
	}
	var issuers, ids texts
	for _, op := range seen {
		issuers, ids = append(issuers, op.key.issuer), append(ids, op.id)
	}
	for i := range c.list {
		if a := c.list[i].Change; a != nil && a.OperationID != "" {
			issuers, ids = append(issuers, c.list[i].Message.IssuerID), append(ids, a.OperationID)
		}
	}
	if len(ids) > 0 {
		b.Queue(`
			SELECT n.id FROM unnest($1::text[], $2::text[]) AS t(issuer_id, operation_id)
			JOIN notifications n ON n.issuer_id = t.issuer_id AND n.operation_id = t.operation_id AND n.outcome = 'parked'`,
			issuers, ids).Query(func(rows pgx.Rows) (err error) {
			c.parked, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
	}
}

// queueClaimLocks locks messages in the order of their ids and finds out which claims
// still hold.
func queueClaimLocks(b *pgx.Batch, claims []claim, held map[claim]heldMessage) {
	ids, tokens := claimColumns(claims)
	b.Queue(`
		SELECT m.id, m.claim_token, coalesce(m.halt, ''), m.maybe_sent_at IS NOT NULL
		FROM unnest($1::bigint[], $2::uuid[]) AS t(id, token) JOIN outbox m ON m.id = t.id AND m.claim_token = t.token
		ORDER BY m.id FOR UPDATE OF m`,
		ids, tokens).Query(func(rows pgx.Rows) error {
		return each(rows, func() error {
			var id int64
			var token pgtype.UUID
			var h heldMessage
			err := rows.Scan(&id, &token, &h.halt, &h.maybe)
			held[claim{id, token.Bytes}] = h
			return err
		})
	})
}

// answer decides what becomes of each order and message, and queues all that is written.
func (c *completing) answer(b *pgx.Batch) {
	w := advances{store: c.store}
	c.shipped = make(map[shipmentKey]ShipmentUpdate)
	var attempts []attemptRow
	var nexts, changes []nextRow
	for i := range c.list {
		done := &c.list[i]
		m := &done.Message
		o := c.locked[m.key()]
		if o == nil {
			continue // erased in the meantime
		}
		h, held := c.held[m.claim()]
		if held && m.Kind == KindSubmit {
			o.submit = m.ID
		}
		attempts = append(attempts, attemptRow{o.orderKey, &done.Attempt, !held})
		if m.Kind == KindChange {
			next := Next{RunIn: done.Next.RunIn, Tries: done.Next.Tries, Unsent: true}
			if next.Done = !w.changeAnswered(o, done, held); held {
				changes = append(changes, nextRow{message: m, Next: next})
			}
			continue
		}
		for _, shown := range done.Changes {
			w.changeShown(o, done.cause(), shown)
		}
		evidence, next := c.decide(done, o, h, held)
		if held {
			switch {
			case c.ships(o.orderKey, done):
				evidence = append(evidence, order.News{})
			case m.Kind == KindAsk && next.Done && c.store.silent(o):
				evidence = append(evidence, order.Silence{})
			}
		}
		cause := done.cause()
		cause.Detail = unknownStatus(evidence)
		w.advance(o, cause, evidence...)
		if !next.Unsent && o.firstSentAt == nil && !m.FirstSentAt.IsZero() { // a fact as well
			o.firstSentAt = &m.FirstSentAt
			w.touch(o)
		}
		if !held {
			if m.Kind != KindAsk && o.stored.ToBeSent() {
				c.lost = append(c.lost, m.IssuerID)
			}
			continue
		}
		if m.Kind == KindAsk || o.state.Waiting() {
			nexts = append(nexts, nextRow{m, next, c.lanes[LaneOf(m.IssuerID)].stopped(), next.maybe(h)})
		}
	}
	for i := range c.list {
		for _, other := range c.list[i].Others {
			if o := c.locked[orderKey{c.list[i].Message.IssuerID, other.OrderID}]; o != nil {
				w.advance(o, c.list[i].cause()) // by all its operations
			}
		}
	}
	queueAttempts(b, attempts)
	queueNexts(b, changes)
	w.queue(b)
	queueShipments(b, c.shipped)
	queueNexts(b, nexts)
}

// decide returns how a completion advances its order and what becomes of its message.
func (c *completing) decide(done *Completion, o *lockedOrder, h heldMessage, held bool) ([]order.Evidence, Next) {
	m := &done.Message
	evidence, next := slices.Clip(done.Evidence), done.Next
	for _, id := range done.Seen {
		if c.owners[id] != o.orderKey {
			// Adopting another order's operation would hide a lost card.
			evidence = []order.Evidence{order.Notice{Attention: order.AttentionForeignOperation}}
			if m.Kind != KindAsk {
				evidence = append(evidence, order.LostAnswer{})
				next = Next{RunIn: time.Minute, Asks: done.Next.Asks + 1, ResendOff: true, Maybe: MaybeNow}
			}
		}
	}
	news := c.lanes[LaneOf(m.IssuerID)]
	if done.Attempt.Kind == AttemptSubmit && slices.ContainsFunc(evidence, isTaken) {
		news.accepted(done)
	}
	if !held {
		return nil, next
	}
	if m.Kind == KindAsk {
		return evidence, next
	}
	o.halt = h.halt
	switch {
	case o.state.OperationID == "" && len(done.Seen) == 0 && len(o.operations) > 0:
		// An answer that came when its claim was lost told of an operation: D1 has
		// the order, whatever this call did not see.
		return []order.Evidence{order.Taken{OperationID: o.operations[0]}}, next
	case h.halt != "" && len(o.operations) == 0 && !next.maybe(h) && (next.Unsent || next.Refused || next.Maybe == MaybeClear):
		// D1 certainly does not have what somebody wants held or cancelled.
		if next.Maybe == MaybeClear {
			evidence = []order.Evidence{order.NotFound{}}
		}
		return append(evidence, h.halt.evidence()), next
	case next.GiveUp:
		evidence = append(evidence, order.Notice{Attention: order.AttentionGivenUp})
	}
	if next.Refused {
		news.refused(done)
	}
	return evidence, next
}

func isTaken(e order.Evidence) bool { _, is := e.(order.Taken); return is }

// maybe tells whether D1 may have the order of a message after a call.
func (n Next) maybe(h heldMessage) bool {
	return n.Maybe == MaybeNow || n.Maybe == MaybeKeep && h.maybe
}

// nextRow is what becomes of a message that stays.
type nextRow struct {
	message *Message
	Next
	stopped bool // its lane is
	unknown bool // D1 may have the order
}

// queueNexts reschedules messages; only the holders of their claims can. While a lane is
// stopped a refusal proves nothing about an order, and no time counts against it.
func queueNexts(b *pgx.Batch, list []nextRow) {
	var stay []nextRow
	var doneIDs []int64
	var doneTokens uuids
	for _, r := range list {
		if r.Done {
			doneIDs, doneTokens = append(doneIDs, r.message.ID), append(doneTokens, pgID(&r.message.Token))
			continue
		}
		stay = append(stay, r)
	}
	if len(doneIDs) > 0 {
		exec(b, `DELETE FROM outbox m USING unnest($1::bigint[], $2::uuid[]) AS t(id, token) WHERE m.id = t.id AND m.claim_token = t.token`,
			doneIDs, doneTokens)
	}
	n := len(stay)
	if n == 0 {
		return
	}
	ids, tokens, runIns, rejects, burnt := make([]int64, n), make(uuids, n), make([]time.Duration, n), make([]time.Duration, n), make([]time.Duration, n)
	tries, asks, negatives, maybes := make([]int, n), make([]int, n), make([]int, n), make([]int, n)
	resendOff, neverSent, keepRefusal := make([]bool, n), make([]bool, n), make([]bool, n)
	setAside, unknown, giveUp := make([]bool, n), make([]bool, n), make([]bool, n)
	for i, r := range stay {
		ids[i], tokens[i], runIns[i], rejects[i] = r.message.ID, pgID(&r.message.Token), r.RunIn, r.RejectAfter
		if r.Burns && !r.stopped {
			burnt[i] = r.RunIn
		}
		tries[i], asks[i], negatives[i], maybes[i] = r.Tries, r.Asks, r.Negatives, int(r.Maybe)
		resendOff[i], neverSent[i] = r.ResendOff || r.GiveUp && r.unknown, r.Unsent && !r.message.SentBefore
		setAside[i], keepRefusal[i] = r.Refused && !r.stopped, r.Unsent && !r.Refused
		unknown[i], giveUp[i] = r.unknown, r.GiveUp && !r.unknown
	}
	exec(b, `
		UPDATE outbox m SET claim_token = NULL, leased_until = NULL,
			run_at = CASE WHEN t.give_up THEN 'infinity' ELSE now() + t.run_in END,
			class = CASE WHEN m.kind = 'ask' OR t.unknown THEN $16::smallint
				WHEN m.class <> $16::smallint THEN m.class
				ELSE (SELECT CASE WHEN o.batch_id IS NULL OR o.urgent THEN $17::smallint ELSE $18 END
					FROM orders o WHERE o.issuer_id = m.issuer_id AND o.id = m.order_id) END,
			tries = t.tries, asks = t.asks, negatives = t.negatives, resend_off = m.resend_off OR t.resend_off,
			maybe_sent_at = CASE t.maybe WHEN 0 THEN m.maybe_sent_at WHEN 1 THEN now() END,
			first_sent_at = CASE WHEN NOT t.never_sent THEN m.first_sent_at END,
			refused_since = CASE WHEN t.set_aside THEN coalesce(m.refused_since, now()) WHEN t.keep_refusal THEN m.refused_since END,
			refused_at = CASE WHEN t.set_aside THEN now() WHEN t.keep_refusal THEN m.refused_at END,
			reject_after = CASE WHEN t.set_aside THEN t.reject_after WHEN t.keep_refusal THEN m.reject_after END,
			trying_for = m.trying_for + t.burnt,
			resends = m.resends + CASE t.maybe WHEN 2 THEN 1 ELSE 0 END
		FROM unnest($1::bigint[], $2::uuid[], $3::interval[], $4::interval[], $5::interval[], $6::integer[], $7::integer[], $8::integer[], $9::smallint[],
				$10::boolean[], $11::boolean[], $12::boolean[], $13::boolean[], $14::boolean[], $15::boolean[])
			AS t(id, token, run_in, reject_after, burnt, tries, asks, negatives, maybe, resend_off, never_sent, keep_refusal, set_aside, unknown, give_up)
		WHERE m.id = t.id AND m.claim_token = t.token`,
		ids, tokens, runIns, rejects, burnt, tries, asks, negatives, maybes, resendOff, neverSent, keepRefusal, setAside, unknown, giveUp,
		ClassQuestion, ClassSingle, ClassBatch)
}

type attemptRow struct {
	key orderKey
	*Attempt
	claimLost bool
}

func queueAttempts(b *pgx.Batch, list []attemptRow) {
	n := len(list)
	if n == 0 {
		return
	}
	issuers, orders, ids, kinds := make(texts, n), make(uuids, n), make(uuids, n), make(texts, n)
	outcomes, reasons, statuses := make(texts, n), make(texts, n), make([]int, n)
	codes, texts, operations, correlations := make(texts, n), make(texts, n), make(texts, n), make(texts, n)
	started, durations, lost := make([]time.Time, n), make([]int64, n), make([]bool, n)
	for i, a := range list {
		issuers[i], orders[i], ids[i], kinds[i] = a.key.issuer, pgID(&a.key.id), pgID(&a.ID), string(a.Kind)
		outcomes[i], reasons[i], statuses[i], codes[i], texts[i] = a.Outcome, a.Reason, a.HTTPStatus, a.ErrorCode, a.ErrorText
		operations[i], correlations[i] = a.OperationID, a.CorrelationID
		started[i], durations[i], lost[i] = a.StartedAt, a.Duration.Milliseconds(), a.claimLost
	}
	exec(b, `
		INSERT INTO attempts (issuer_id, order_id, id, kind, outcome, reason, http_status, error_code, error_text,
			operation_id, correlation_id, started_at, duration_ms, claim_lost)
		SELECT i, o, a, k, oc, r, nullif(st, 0), nullif(ec, ''), nullif(et, ''), nullif(op, ''), co, t, d, l
		FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::smallint[], $8::text[], $9::text[],
			$10::text[], $11::text[], $12::timestamptz[], $13::integer[], $14::boolean[]) AS t(i, o, a, k, oc, r, st, ec, et, op, co, t, d, l)
		ON CONFLICT DO NOTHING`,
		issuers, orders, ids, kinds, outcomes, reasons, statuses, codes, texts, operations, correlations, started, durations, lost)
}

// Owners tells to which orders the operations belong that D1 shows for a card.
type Owners struct {
	Operations map[string]Owner     // by operationId
	Requests   map[string]uuid.UUID // orders by issuerRequestId
}

// Owner is the order of an operation.
type Owner struct {
	OrderID uuid.UUID
	Adopted bool      // it is the one that makes the order's card, and not a further one
	Since   time.Time // when it became known
}

// Owners looks up operations and requests of an issuer.
func (s *Store) Owners(ctx context.Context, issuer string, operationIDs, requestIDs []string) (Owners, error) {
	owners := Owners{make(map[string]Owner), make(map[string]uuid.UUID)}
	var b pgx.Batch
	b.Queue(`
		SELECT p.operation_id, p.order_id, coalesce(s.operation_id = p.operation_id, false), p.created_at
		FROM operations p LEFT JOIN order_state s ON s.issuer_id = p.issuer_id AND s.order_id = p.order_id
		WHERE p.issuer_id = $1 AND p.operation_id = ANY($2)`, issuer, operationIDs).Query(func(rows pgx.Rows) error {
		var id string
		var owner Owner
		_, err := pgx.ForEachRow(rows, []any{&id, &owner.OrderID, &owner.Adopted, &owner.Since}, func() error { owners.Operations[id] = owner; return nil })
		return err
	})
	b.Queue(`SELECT issuer_request_id, id FROM orders WHERE issuer_id = $1 AND issuer_request_id = ANY($2)`, issuer, requestIDs).Query(func(rows pgx.Rows) error {
		var id string
		var orderID uuid.UUID
		_, err := pgx.ForEachRow(rows, []any{&id, &orderID}, func() error { owners.Requests[id] = orderID; return nil })
		return err
	})
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return Owners{}, fmt.Errorf("looking up whose operations these are: %w", err)
	}
	return owners, nil
}

// Doubts tells what else may be behind an operation of the card that names no
// request, and behind D1's silence. sibling: another order of the card was sent, or may
// have been in another history of the database, and its operation is not known. parked:
// since this order was first sent, D1 has told of an operation of the card that found no
// order.
func (s *Store) Doubts(ctx context.Context, m Message) (sibling, parked bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM orders o JOIN order_state s ON s.issuer_id = o.issuer_id AND s.order_id = o.id
				WHERE o.issuer_id = $1 AND o.card_id = $2 AND o.id <> $3 AND s.operation_id IS NULL
					AND (s.first_sent_at IS NOT NULL AND s.status <> 'REJECTED'
						OR s.status IN ('HELD', 'REJECTED') AND `+unchangedSince+` < (SELECT seen_at FROM database_history)
						OR EXISTS (SELECT FROM outbox e WHERE e.issuer_id = o.issuer_id AND e.order_id = o.id AND e.kind = 'submit'
							AND e.first_sent_at IS NOT NULL))),
			EXISTS (SELECT FROM notifications n
				WHERE n.issuer_id = $1 AND n.card_id = $2 AND n.outcome = 'parked' AND n.operation = 'PRODUCE' AND n.created_at >= $4)`,
		m.IssuerID, m.CardID, m.OrderID, m.FirstSentAt).Scan(&sibling, &parked)
	if err != nil {
		return false, false, fmt.Errorf("looking for doubts about a card: %w", err)
	}
	return sibling, parked, nil
}

// KnownCard returns a card of the issuer that D1 certainly has and had time to
// show: the newest but the given one with an operation whose order is older than age.
// ErrNotFound when there is none.
func (s *Store) KnownCard(ctx context.Context, issuer, other string, age time.Duration) (string, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT o.card_id FROM operations p JOIN orders o ON o.issuer_id = p.issuer_id AND o.id = p.order_id
		WHERE p.issuer_id = $1 AND p.operation = 'PRODUCE' AND p.order_id < $2 AND p.created_at < now() - $3::interval
			AND o.card_id <> $4
		ORDER BY p.order_id DESC LIMIT 1`, issuer, idsBefore(time.Now().Add(-age)), age, other)
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
