package store

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"cardorder/internal/order"
)

// Acceptance is an order to be stored, or a request that may have been accepted
// before.
type Acceptance struct {
	IssuerID       string
	IdempotencyKey string // "" when the request carried none
	Client         string // name of the client that asks
	Request        *order.Request
	// Faults is what is wrong with the request by the rules of today. It is no new
	// order then, but still leads to the one that it was accepted as: a caller that
	// never got its answer must not take it for refused because an agreement or a
	// key has changed meanwhile.
	Faults order.Faults
}

// hopeless tells that the request is no order, and that none was ever accepted for
// it.
func (a *Acceptance) hopeless() bool {
	return len(a.Faults) > 0 && (a.Request == nil || a.Request.Canonical == nil ||
		a.IdempotencyKey == "" && a.Request.Production.IssuerRequestID == "")
}

// Accepted is the order that an acceptance led to.
type Accepted struct {
	Order    *Order
	Replayed bool // the order was there before
	// CardDataDiffers tells that a replay carried another JWE than the first
	// request. The first one stands: two JWEs of the same card always differ.
	CardDataDiffers bool
}

// ConflictError refuses a request because of another order.
type ConflictError struct {
	Kind    ConflictKind
	OrderID uuid.UUID // the order that is in the way
}

// ConflictKind tells what the request and the order have in common.
type ConflictKind string

const (
	// ContentDiffers: the same key, but another request.
	ContentDiffers ConflictKind = "idempotency-conflict"
	// DuplicateOrder: another open order for the same card, or a CREATION of a
	// card that was created a short time ago.
	DuplicateOrder ConflictKind = "duplicate-order"
)

func (e *ConflictError) Error() string { return string(e.Kind) + ": order " + e.OrderID.String() }

// ErrNewerRelease refuses to compare a request with an order that a newer release
// of this service has stored: during a roll-out, the newer one can.
var ErrNewerRelease = errors.New("the order was stored by a newer release")

// LaneOf names the lane of an issuer's D1.
func LaneOf(issuer string) string { return "d1/" + issuer }

// Accept stores an order with everything that belongs to it and returns after the
// commit. A request that was accepted before leads to its order again. The error
// is a *ConflictError when another order is in the way, and order.Faults when
// something is wrong with the request itself. When ctx ends first, the
// order may be stored all the same: the request's keys make its repetition safe.
func (s *Store) Accept(ctx context.Context, a Acceptance) (*Accepted, error) {
	if a.hopeless() {
		return nil, a.Faults
	}
	e, err := s.newEntry(a)
	if err != nil {
		return nil, err
	}
	if err := s.commit(ctx, e); err != nil {
		return nil, fmt.Errorf("storing an order: %w", err)
	}
	return s.accepted(ctx, e)
}

// DryRun finds out what Accept would do, and leaves nothing behind.
func (s *Store) DryRun(ctx context.Context, a Acceptance) (*Accepted, error) {
	if a.hopeless() {
		return nil, a.Faults
	}
	e, err := s.newEntry(a)
	if err != nil {
		return nil, err
	}
	if err := s.rehearse(ctx, []*entry{e}); err != nil {
		return nil, fmt.Errorf("trying an order: %w", err)
	}
	return s.accepted(ctx, e)
}

// rehearse does what insert does in a transaction that is rolled back.
func (s *Store) rehearse(ctx context.Context, entries []*entry) error {
	if len(entries) == 0 {
		return nil
	}
	err := s.inTx(ctx, func(tx pgx.Tx) error {
		if err := s.insert(ctx, tx, entries); err != nil {
			return err
		}
		return errRehearsed
	})
	if errors.Is(err, errRehearsed) {
		return nil
	}
	return err
}

var errRehearsed = errors.New("rolled back on purpose")

// accepted tells the caller what became of its request.
func (s *Store) accepted(ctx context.Context, e *entry) (*Accepted, error) {
	switch {
	case e.err != nil:
		return nil, e.err
	case e.verdict == verdictAccepted:
		return &Accepted{Order: e.order}, nil
	}
	o, err := s.Order(ctx, e.IssuerID, e.other)
	if err != nil {
		return nil, err
	}
	differs, err := s.cardDataDiffers(ctx, o, e.Request.Production.EncryptedData)
	if err != nil {
		return nil, err
	}
	return &Accepted{Order: o, Replayed: true, CardDataDiffers: differs}, nil
}

// verdict is what became of an entry.
type verdict int

const (
	verdictNone     verdict = iota // not decided yet
	verdictAccepted                // it is a new order
	verdictReplayed                // it is the order `other`
	verdictRefused                 // `err` says why
)

// entry is an order on its way into the tables, and what became of it there.
type entry struct {
	Acceptance
	order    *Order
	terms    string  // as JSON
	metadata *string // as JSON
	replaces *uuid.UUID
	sealed   sealedPayload
	keyID    string // of the card data
	hash     []byte
	batchID  *uuid.UUID
	class    Class
	// recreates: it stands in for the very order whose CREATION would bar this one.
	recreates bool
	hold      bool          // it is to be kept back
	delay     time.Duration // for which it is kept back at least
	look      int32         // seconds after which it is first looked at; negative for never

	verdict verdict
	other   uuid.UUID
	err     error
	parked  []int64 // notifications that name it already

	done chan error // of a group: the entry is decided, or could not be
}

// reset forgets what a transaction decided that did not commit.
func (e *entry) reset() {
	e.verdict, e.other, e.err, e.parked = verdictNone, uuid.Nil, nil, nil
}

func (e *entry) refuse(err error) { e.verdict, e.err = verdictRefused, err }

// refuseFor refuses an entry because of another order, unless something is wrong with
// it itself.
func (e *entry) refuseFor(kind ConflictKind, other uuid.UUID) {
	if len(e.Faults) > 0 {
		e.refuse(e.Faults)
		return
	}
	e.refuse(&ConflictError{kind, other})
}

// newEntry does all that an order costs before the database is needed.
func (s *Store) newEntry(a Acceptance) (*entry, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an order id: %w", err)
	}
	p := a.Request.Production // a copy: what is completed here is not the caller's
	if p.IssuerRequestID == "" {
		p.IssuerRequestID = id.String()
	}
	encryptedData := p.EncryptedData
	p.EncryptedData = ""
	production, err := p.Body()
	if err != nil {
		return nil, err
	}
	e := &entry{Acceptance: a, keyID: keyIDOf(encryptedData), hash: s.cfg.HashKeys.content(comparisonVersion, a.Request.Canonical), hold: a.Request.Hold}
	if e.sealed, err = s.cfg.Seal.sealPayload(a.IssuerID, id, production, encryptedData); err != nil {
		return nil, err
	}
	if a.Request.ReplacesOrderID != "" {
		replaced, err := uuid.Parse(a.Request.ReplacesOrderID)
		if err != nil {
			return nil, fmt.Errorf("reading the id of the replaced order: %w", err)
		}
		e.replaces = &replaced
	}
	e.order = &Order{
		IssuerID: a.IssuerID, ID: id, IssuerRequestID: p.IssuerRequestID,
		CardID: a.Request.CardID, ConsumerID: p.ConsumerID, CardProductID: p.CardProductID, Channel: p.Channel,
		Terms: p.Terms(), Metadata: a.Request.Metadata, Urgent: a.Request.Urgent,
		DuplicateOverride: a.Request.DuplicateOverride, Warnings: a.Request.Warnings, CreatedBy: a.Client,
		ReplacesOrderID: e.replaces,
		State:           order.NewState(a.Request.EndsAt),
	}
	s.planLook(e)
	terms, err := json.Marshal(e.order.Terms)
	if err != nil {
		return nil, fmt.Errorf("writing the terms of an order: %w", err)
	}
	e.terms = string(terms)
	if a.Request.Metadata != nil {
		metadata, err := json.Marshal(a.Request.Metadata)
		if err != nil {
			return nil, fmt.Errorf("writing the metadata of an order: %w", err)
		}
		e.metadata = optional(string(metadata))
	}
	return e, nil
}

// planLook finds out for how long a new order is kept back, and when it is first looked
// at. That is by this process's clock, which may be off a little: the look decides, by
// the database's.
func (s *Store) planLook(e *entry) {
	const off = time.Minute
	now := time.Now()
	limits := s.limits(e.IssuerID, e.order.CardProductID)
	if limits != nil && !e.order.Urgent {
		e.delay = limits.DispatchDelay
	}
	state := e.order.State
	if e.hold {
		state = order.NewHeldState(state.EndsAt, order.HeldByRequest)
	}
	state.Since = now
	clock := order.Clock{
		Now: now, Limits: limits, Issuance: e.order.Terms.Services.Issuance, Urgent: e.order.Urgent, Accepted: now.Add(-off),
	}
	e.look = -1
	if look := order.NextLook(state, clock, 0); !look.IsZero() {
		e.look = int32(min(max(0, look.Sub(now)/time.Second), math.MaxInt32))
	}
}

// isAccepted takes note of what the database made of a new order.
func (s *Store) isAccepted(e *entry, createdAt time.Time, notBefore *time.Time) {
	o := e.order
	e.verdict = verdictAccepted
	o.CreatedAt, o.UpdatedAt, o.NotBefore = createdAt, createdAt, notBefore
	o.State = order.NewState(e.Request.EndsAt)
	switch {
	case e.hold:
		o.State = order.NewHeldState(e.Request.EndsAt, order.HeldByRequest)
	case notBefore != nil:
		o.State = order.NewHeldState(e.Request.EndsAt, order.HeldBySchedule)
	}
	o.State.Since = createdAt
	s.showDue(o)
}

// maxRounds bounds how often undecided entries are tried: something has to come and
// go between two rounds for another one.
const maxRounds = 10

// insert decides all entries within a transaction: each is a new order with all its
// rows, or was accepted before, or is refused. The unique indexes decide: first
// those of idempotency, then the guard, since a repeated request is no duplicate.
//
// In each round, entries that share no key with each other are tried together; what
// did not get in is looked up.
func (s *Store) insert(ctx context.Context, tx pgx.Tx, entries []*entry) error {
	for _, e := range entries {
		e.reset()
	}
	if err := refuseUnknownReplaced(ctx, tx, entries); err != nil {
		return err
	}
	open := undecided(entries)
	for round := 0; len(open) > 0; round++ {
		if round == maxRounds {
			return errors.New("orders are neither new nor there")
		}
		if fresh := distinct(faultless(open)); len(fresh) > 0 {
			if err := s.insertDistinct(ctx, tx, fresh); err != nil {
				return err
			}
		}
		if open = undecided(open); len(open) == 0 {
			return nil
		}
		if err := s.resolve(ctx, tx, open); err != nil {
			return err
		}
		open = undecided(open)
	}
	return nil
}

func undecided(entries []*entry) []*entry {
	var open []*entry
	for _, e := range entries {
		if e.verdict == verdictNone {
			open = append(open, e)
		}
	}
	return open
}

// faultless takes of entries those that may be new orders.
func faultless(entries []*entry) []*entry {
	if !slices.ContainsFunc(entries, func(e *entry) bool { return len(e.Faults) > 0 }) {
		return entries
	}
	var list []*entry
	for _, e := range entries {
		if len(e.Faults) == 0 {
			list = append(list, e)
		}
	}
	return list
}

// distinct takes of entries those that no earlier one shares a unique key with.
func distinct(entries []*entry) []*entry {
	if len(entries) == 1 {
		return entries
	}
	type key struct{ kind, issuer, value string }
	seen := make(map[key]bool, 3*len(entries))
	var list []*entry
	for _, e := range entries {
		keys := [...]key{
			{"request", e.IssuerID, e.order.IssuerRequestID}, {"card", e.IssuerID, e.order.CardID}, {"key", e.IssuerID, e.IdempotencyKey},
		}
		free := !seen[keys[0]] && !seen[keys[1]] && (e.IdempotencyKey == "" || !seen[keys[2]])
		// Also a deferred entry keeps its keys from those after it: first come, first served.
		for _, k := range keys {
			seen[k] = true
		}
		if free {
			list = append(list, e)
		}
	}
	return list
}

// faultUnknownReplaced is the fault of an order whose replacesOrderId leads nowhere.
var faultUnknownReplaced = order.Fault{Pointer: "/replacesOrderId", Code: order.CodeUnknownOrder, Detail: "is no order of this issuer"}

func refuseUnknownReplaced(ctx context.Context, tx pgx.Tx, entries []*entry) error {
	var issuers []string
	var ids []uuid.UUID
	for _, e := range entries {
		if e.replaces != nil {
			issuers, ids = append(issuers, e.IssuerID), append(ids, *e.replaces)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `
		SELECT o.issuer_id, o.id FROM orders o
		WHERE (o.issuer_id, o.id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))`, issuers, ids)
	if err != nil {
		return fmt.Errorf("looking for replaced orders: %w", err)
	}
	there := make(map[orderKey]bool)
	var key orderKey
	if _, err := pgx.ForEachRow(rows, []any{&key.issuer, &key.id}, func() error { there[key] = true; return nil }); err != nil {
		return fmt.Errorf("looking for replaced orders: %w", err)
	}
	for _, e := range entries {
		if e.replaces != nil && !there[orderKey{e.IssuerID, *e.replaces}] {
			e.refuse(append(slices.Clip(e.Faults), faultUnknownReplaced))
		}
	}
	return nil
}

// resolve looks up why entries are not new orders: decides those whose request was
// accepted before, and those whose card is guarded, and leaves the rest undecided.
func (s *Store) resolve(ctx context.Context, tx pgx.Tx, open []*entry) error {
	found, err := findByKeys(ctx, tx, open)
	if err != nil {
		return err
	}
	var bind, rest []*entry
	for i, e := range open {
		switch orders := found[i]; {
		case len(orders) == 0 && len(e.Faults) > 0:
			e.refuse(e.Faults)
		case len(orders) == 0:
			rest = append(rest, e)
		case len(orders) > 1: // its keys belong to two orders
			e.refuseFor(ContentDiffers, orders[0].id)
		default:
			same, err := s.cfg.HashKeys.matches(orders[0].version, orders[0].hash, e.Request.Canonical)
			switch {
			case err != nil:
				e.refuse(err)
			case !same:
				e.refuseFor(ContentDiffers, orders[0].id)
			case e.IdempotencyKey != "" && !orders[0].byKey:
				e.other = orders[0].id
				bind = append(bind, e)
			default:
				e.verdict, e.other = verdictReplayed, orders[0].id
			}
		}
	}
	if err := bindKeys(ctx, tx, bind); err != nil {
		return err
	}
	return findGuarding(ctx, tx, rest)
}

// known is an order that one of a request's keys belongs to.
type known struct {
	id      uuid.UUID
	hash    []byte
	version int16
	byKey   bool // the Idempotency-Key is bound to it
}

// findByKeys returns, for each entry, the orders that its keys belong to, the first
// made first.
func findByKeys(ctx context.Context, tx pgx.Tx, entries []*entry) ([][]known, error) {
	n := len(entries)
	issuers, keys, requests := make([]string, n), make([]*string, n), make([]string, n)
	for i, e := range entries {
		issuers[i], keys[i], requests[i] = e.IssuerID, optional(e.IdempotencyKey), e.order.IssuerRequestID
	}
	rows, err := tx.Query(ctx, `
		SELECT t.i, f.id, f.content_hash, f.content_hash_version, bool_or(f.by_key)
		FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS t(issuer_id, key, issuer_request_id, i)
		CROSS JOIN LATERAL (
			SELECT o.id, o.content_hash, o.content_hash_version, true AS by_key
			FROM idempotency_keys k JOIN orders o ON o.issuer_id = k.issuer_id AND o.id = k.order_id
			WHERE k.issuer_id = t.issuer_id AND k.key = t.key
			UNION ALL
			SELECT o.id, o.content_hash, o.content_hash_version, false
			FROM orders o WHERE o.issuer_id = t.issuer_id AND o.issuer_request_id = t.issuer_request_id
		) f
		GROUP BY t.i, f.id, f.content_hash, f.content_hash_version
		ORDER BY t.i, f.id`, issuers, keys, requests)
	if err != nil {
		return nil, fmt.Errorf("looking for the orders of repeated requests: %w", err)
	}
	found := make([][]known, n)
	var i int
	var m known
	_, err = pgx.ForEachRow(rows, []any{&i, &m.id, &m.hash, &m.version, &m.byKey}, func() error {
		found[i-1] = append(found[i-1], m)
		m.hash = nil // the next row gets a slice of its own
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the orders of repeated requests: %w", err)
	}
	return found, nil
}

// bindKeys makes the keys of replays lead to their orders from now on. An entry whose
// key was taken at this very moment stays undecided.
func bindKeys(ctx context.Context, tx pgx.Tx, replays []*entry) error {
	replays = distinct(replays)
	if len(replays) == 0 {
		return nil
	}
	var issuers, keys []string
	var ids []uuid.UUID
	for _, e := range replays {
		issuers, keys, ids = append(issuers, e.IssuerID), append(keys, e.IdempotencyKey), append(ids, e.other)
	}
	rows, err := tx.Query(ctx, `
		INSERT INTO idempotency_keys (issuer_id, key, order_id)
		SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[]) AS t(issuer_id, key, order_id) ORDER BY issuer_id, key
		ON CONFLICT DO NOTHING RETURNING issuer_id, key`, issuers, keys, ids)
	if err != nil {
		return fmt.Errorf("binding idempotency keys: %w", err)
	}
	type bound struct{ issuer, key string }
	done := make(map[bound]bool)
	var b bound
	if _, err := pgx.ForEachRow(rows, []any{&b.issuer, &b.key}, func() error { done[b] = true; return nil }); err != nil {
		return fmt.Errorf("binding idempotency keys: %w", err)
	}
	for _, e := range replays {
		if done[bound{e.IssuerID, e.IdempotencyKey}] {
			e.verdict = verdictReplayed
		}
	}
	return nil
}

// findGuarding refuses entries whose card another order holds.
func findGuarding(ctx context.Context, tx pgx.Tx, entries []*entry) error {
	if len(entries) == 0 {
		return nil
	}
	var issuers, cards []string
	var creations []bool
	for _, e := range entries {
		issuers, cards, creations = append(issuers, e.IssuerID), append(cards, e.order.CardID), append(creations, e.barred())
	}
	rows, err := tx.Query(ctx, `
		SELECT t.i, CASE WHEN g.order_ids <> '{}' THEN g.order_ids[cardinality(g.order_ids)] ELSE g.creation_order_id END
		FROM unnest($1::text[], $2::text[], $3::boolean[]) WITH ORDINALITY AS t(issuer_id, card_id, creation, i)
		JOIN card_guard g ON g.issuer_id = t.issuer_id AND g.card_id = t.card_id
		WHERE g.order_ids <> '{}' OR t.creation AND g.creation_until > now()`, issuers, cards, creations)
	if err != nil {
		return fmt.Errorf("reading the duplicate guard: %w", err)
	}
	var i int
	var other uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&i, &other}, func() error {
		if e := entries[i-1]; !e.overrides() {
			e.refuseFor(DuplicateOrder, other)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the duplicate guard: %w", err)
	}
	return nil
}

func (e *entry) creation() bool { return e.order.Terms.Services.Issuance == order.IssuanceCreation }

// barred tells whether an earlier CREATION of the card can be in its way.
func (e *entry) barred() bool    { return e.creation() && !e.recreates }
func (e *entry) overrides() bool { return e.order.DuplicateOverride != "" }

func (s *Store) cardDataDiffers(ctx context.Context, o *Order, encryptedData string) (bool, error) {
	var sealed []byte
	err := s.pool.QueryRow(ctx, `SELECT encrypted_data FROM order_payload WHERE issuer_id = $1 AND order_id = $2`,
		o.IssuerID, o.ID).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return true, nil // erased: nothing is left to compare with
	}
	if err != nil {
		return false, fmt.Errorf("reading the card data of an order: %w", err)
	}
	first, err := s.cfg.Seal.open(sealed, columnEncryptedData, o.IssuerID, o.ID.String())
	if err != nil {
		return true, nil //nolint:nilerr // it is only compared: what cannot be opened is not the same
	}
	return !hmac.Equal(first, []byte(encryptedData)), nil
}

func (s *Store) duplicateWindow(issuer, cardProductID string) time.Duration {
	if s.cfg.DuplicateWindow != nil {
		if window := s.cfg.DuplicateWindow(issuer, cardProductID); window > 0 {
			return window
		}
	}
	return 30 * 24 * time.Hour
}
