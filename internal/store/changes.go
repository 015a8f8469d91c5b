package store

import (
	"cmp"
	"context"
	"crypto/hmac"
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

// Change is a change of an order, as somebody wanted it and as it stands.
type Change struct {
	ID          uuid.UUID
	OrderID     uuid.UUID
	Type        order.ChangeType
	State       order.ChangeState
	Reason      order.ChangeReason // of the state, "" when it needs none
	OperationID string             // D1's, "" while none is known
	CreatedAt   time.Time
	CreatedBy   string
	UpdatedAt   time.Time
	SentAt      *time.Time // the last moment at which D1 may have got it
	ExpiresAt   *time.Time // when D1 has to have answered, while it is waited for
}

// changeColumns are the columns of order_changes that make a Change.
const changeColumns = `c.id, c.order_id, c.type, c.state, coalesce(c.reason, ''), coalesce(c.operation_id, ''),
	c.created_at, c.created_by, c.updated_at, c.sent_at, CASE WHEN c.state IN ('REQUESTED', 'SENT') THEN c.expires_at END`

func changeFields(c *Change) []any {
	return []any{
		&c.ID, &c.OrderID, &c.Type, &c.State, &c.Reason, &c.OperationID, &c.CreatedAt, &c.CreatedBy, &c.UpdatedAt, &c.SentAt, &c.ExpiresAt,
	}
}

func scanChange(row pgx.CollectableRow) (*Change, error) {
	var c Change
	return &c, row.Scan(changeFields(&c)...)
}

// ErrNoChange is returned for a change that the order does not have.
var ErrNoChange = errors.New("the order has no such change")

// Change reads one change of an order. The error is ErrNotFound when there is no such
// order, and ErrNoChange when it has no such change.
func (s *Store) Change(ctx context.Context, issuer string, orderID, id uuid.UUID) (*Change, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+changeColumns+` FROM order_changes c WHERE c.issuer_id = $1 AND c.id = $3 AND c.order_id = $2`,
		issuer, orderID, id)
	if err != nil {
		return nil, fmt.Errorf("reading a change: %w", err)
	}
	c, err := pgx.CollectExactlyOneRow(rows, scanChange)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, cmp.Or(s.orderExists(ctx, issuer, orderID), ErrNoChange)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a change: %w", err)
	}
	return c, nil
}

// Changes lists the changes of an order older than before (all, if it is nil), newest
// first. The error is ErrNotFound when there is no such order.
func (s *Store) Changes(ctx context.Context, issuer string, orderID, before uuid.UUID, limit int) ([]*Change, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT `+changeColumns+` FROM order_changes c
		WHERE c.issuer_id = $1 AND c.order_id = $2 AND ($3::uuid IS NULL OR c.id < $3)
		ORDER BY c.id DESC LIMIT $4`, issuer, orderID, optionalID(before), limit)
	if err != nil {
		return nil, fmt.Errorf("listing changes: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanChange)
	switch {
	case err != nil:
		return nil, fmt.Errorf("listing changes: %w", err)
	case len(list) == 0:
		return nil, s.orderExists(ctx, issuer, orderID)
	}
	return list, nil
}

// redirectedTo returns the address to which D1 last redirected an order, nil when it goes
// where its own content says: that has the addresses of redirects that were done here.
func (s *Store) redirectedTo(ctx context.Context, issuer string, orderID uuid.UUID) (*order.Address, error) {
	var id uuid.UUID
	var sealed []byte
	err := s.pool.QueryRow(ctx, `
		SELECT c.id, c.address FROM order_changes c
		WHERE c.issuer_id = $1 AND c.order_id = $2 AND c.state = 'ACCEPTED' AND c.address IS NOT NULL
		ORDER BY c.id DESC LIMIT 1`, issuer, orderID).Scan(&id, &sealed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for a redirect: %w", err)
	}
	text, err := s.cfg.Seal.open(sealed, columnChangeAddress, issuer, id.String())
	if err != nil {
		return nil, err
	}
	var address order.Address
	if err := json.Unmarshal(text, &address); err != nil {
		return nil, errors.New("reading an address: the content is not what was sealed")
	}
	return &address, nil
}

// orderExists returns ErrNotFound when the issuer has no such order.
func (s *Store) orderExists(ctx context.Context, issuer string, id uuid.UUID) error {
	var exists bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM orders WHERE issuer_id = $1 AND id = $2)`, issuer, id).Scan(&exists)
	switch {
	case err != nil:
		return fmt.Errorf("looking for an order: %w", err)
	case !exists:
		return ErrNotFound
	}
	return nil
}

// ChangePlacement is a change of an order that somebody wants.
type ChangePlacement struct {
	Action
	IdempotencyKey string
	Request        *order.ChangeRequest
	// Faults is what is wrong with the request by the rules of today. It is no new change
	// then, but still leads to the one that it was taken as.
	Faults order.Faults
}

// Errors of a change that cannot be made.
var (
	// ErrShipped: the card has left.
	ErrShipped = errors.New("the card was shipped")
	// ErrNotChangeable: there is no card to be changed.
	ErrNotChangeable = errors.New("the order cannot be changed")
	// ErrTooManyChanges: the order has had as many changes as there may be.
	ErrTooManyChanges = errors.New("the order has too many changes")
)

// ChangeConflictError refuses a change because of another one.
type ChangeConflictError struct {
	Kind     ConflictKind
	ChangeID uuid.UUID // the change that is in the way
}

// ChangePending: another change of the order waits to be sent.
const ChangePending ConflictKind = "change-pending"

func (e *ChangeConflictError) Error() string {
	return string(e.Kind) + ": change " + e.ChangeID.String()
}

// PlaceChange does what somebody wants of an order, or has D1 do it, and returns the change
// after the commit. A key that was used before leads to its change again. The error is
// ErrNotFound, ErrVersion, ErrShipped, ErrNotChangeable, ErrTooManyChanges, order.Faults, or a
// *ChangeConflictError when it cannot be.
//
// All is decided while the order and its message are locked: what is done here is done
// before a worker can take the order, or after it has given it back.
func (s *Store) PlaceChange(ctx context.Context, p ChangePlacement) (c *Change, replayed bool, err error) {
	if p.Request == nil || p.Request.Canonical == nil {
		return nil, false, p.Faults
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, false, fmt.Errorf("making a change id: %w", err)
	}
	var locked map[orderKey]*lockedOrder
	var first uuid.UUID
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		key := orderKey{p.IssuerID, p.OrderID}
		if locked, err = lockToAct(ctx, tx, []orderKey{key}); err != nil {
			return err
		}
		o := locked[key]
		if o == nil {
			return ErrNotFound
		}
		if first, err = s.changeOfKey(ctx, tx, p); err != nil || first != uuid.Nil {
			return err
		}
		switch {
		case len(p.Faults) > 0:
			return p.Faults
		case p.Version != 0 && p.Version != o.state.Version:
			return ErrVersion
		}
		return s.placeChange(ctx, tx, p, o, id)
	})
	if err != nil {
		return nil, false, fmt.Errorf("changing an order: %w", err)
	}
	if first != uuid.Nil {
		c, err = s.Change(ctx, p.IssuerID, p.OrderID, first)
		return c, true, err
	}
	s.logChanges(ctx, locked)
	s.cfg.OnReady(LaneOf(p.IssuerID))
	c, err = s.Change(ctx, p.IssuerID, p.OrderID, id)
	return c, false, err
}

// changeOfKey returns the change that a key was used for, nil when for none.
func (s *Store) changeOfKey(ctx context.Context, tx pgx.Tx, p ChangePlacement) (uuid.UUID, error) {
	var id, orderID uuid.UUID
	var hash []byte
	err := tx.QueryRow(ctx, `SELECT id, order_id, content_hash FROM order_changes WHERE issuer_id = $1 AND key = $2`,
		p.IssuerID, p.IdempotencyKey).Scan(&id, &orderID, &hash)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return uuid.Nil, nil
	case err != nil:
		return uuid.Nil, fmt.Errorf("looking for the change of a key: %w", err)
	case orderID != p.OrderID || !hmac.Equal(hash, s.cfg.HashKeys.change(p.Request.Canonical)):
		return uuid.Nil, &ChangeConflictError{ContentDiffers, id}
	}
	return id, nil
}

// maxChanges is how many changes an order may have that went to D1: all are kept beside
// its state, for D1 may speak of each at any time. A cancel is never to fail for that, so
// there is room for some more of them.
const (
	maxChanges = 20
	maxCancels = 10
)

// placeChange decides about a new change of a locked order and writes what follows.
func (s *Store) placeChange(ctx context.Context, tx pgx.Tx, p ChangePlacement, o *lockedOrder, id uuid.UUID) error {
	_, certain, err := certainlyHere(ctx, tx, o)
	if err != nil {
		return err
	}
	kind := p.Request.Type
	plan := order.PlanChange(kind, o.state, certain)
	if len(o.open) >= maxChanges && (kind != order.ChangeCancel || len(o.open) >= maxChanges+maxCancels) {
		return ErrTooManyChanges
	}
	switch plan {
	case order.ChangeTooLate:
		return ErrShipped
	case order.ChangeImpossible:
		return ErrNotChangeable
	case order.ChangeWaits, order.ChangeGoes:
		for _, c := range o.open {
			if c.State == order.ChangeRequested && (kind != order.ChangeCancel || c.Type == order.ChangeCancel) {
				return &ChangeConflictError{ChangePending, c.ID}
			}
		}
	case order.ChangeDone:
	}
	c := openChange{ID: id, Type: kind, State: order.ChangeRequested, note: p.Request.Note}
	c.redirected = kind.Redirects() && certain
	if err := s.insertChange(ctx, tx, p, c); err != nil {
		return err
	}
	w, cause := advances{store: s}, Cause{Kind: CauseRequest, Actor: p.Actor}
	w.noteChange(o, changeRow{open: c})
	then := func(*pgx.Batch) {} // once the order has its message
	switch {
	case plan == order.ChangeDone && kind == order.ChangeCancel:
		w.advance(o, cause, order.Cancel{}) // which settles it
	case plan == order.ChangeDone:
		c.State, c.Reason = order.ChangeAccepted, order.ReasonBeforeDispatch
		w.moveChange(o, cause, changeRow{open: c})
	case plan == order.ChangeGoes:
		w.changeEvent(o, cause, c)
		w.sendChange(o)
	case certain: // to accelerate it
		w.changeEvent(o, cause, c)
		if o.state.Hold == order.HeldBySchedule {
			w.advance(o, cause, order.Release{})
		}
		then = func(b *pgx.Batch) {
			exec(b, `UPDATE outbox SET class = $4 WHERE issuer_id = $1 AND order_id = $2 AND kind = $3 AND class = $5`,
				o.issuer, o.id, KindSubmit, ClassSingle, ClassBatch)
		}
	default:
		w.changeEvent(o, cause, c)
		if kind == order.ChangeCancel {
			if !o.state.ToBeSent() { // D1 may have it all the same, so it is asked
				w.advance(o, cause, order.Retry{}, order.LostAnswer{})
			}
			then = func(b *pgx.Batch) { queueHalt(b, o, BatchCancel) }
		}
	}
	if c.redirected {
		if err := s.redirect(ctx, tx, o, p.Request.NewDeliveryAddress); err != nil {
			return err
		}
	}
	var b pgx.Batch
	w.queue(&b)
	then(&b)
	return send(ctx, tx, &b)
}

// certainlyHere tells whether D1 certainly does not have a locked order, nor is getting it;
// no worker can take it until the transaction ends. waits tells that it has a message to be
// sent.
func certainlyHere(ctx context.Context, tx pgx.Tx, o *lockedOrder) (waits, certain bool, err error) {
	messages, err := lockSubmits(ctx, tx, []orderKey{o.orderKey})
	if err != nil {
		return false, false, fmt.Errorf("locking a message: %w", err)
	}
	m, waits := messages[o.id]
	if !o.absent(m, waits) {
		return waits, false, nil
	}
	certain, err = inSameHistory(ctx, tx)
	return waits, certain, err
}

// absent tells whether D1 does not have a locked order, nor is getting it, as far as this
// history of the database knows. m is the order's message, if it waits to be sent.
func (o *lockedOrder) absent(m lockedSubmit, waits bool) bool {
	return !m.maybe && len(o.operations) == 0 && (waits || !o.doubted && !o.state.ToBeSent())
}

// insertChange stores a new change. Its address rests here only if it is for D1.
func (s *Store) insertChange(ctx context.Context, tx pgx.Tx, p ChangePlacement, c openChange) error {
	var address []byte
	if c.Type.Redirects() && !c.redirected {
		text, err := json.Marshal(p.Request.NewDeliveryAddress)
		if err != nil {
			return fmt.Errorf("writing an address: %w", err)
		}
		if address, err = s.cfg.Seal.seal(text, columnChangeAddress, p.IssuerID, c.ID.String()); err != nil {
			return err
		}
	}
	tag, err := tx.Exec(ctx, `
		INSERT INTO order_changes (issuer_id, id, order_id, key, content_hash, type, state, address, created_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (issuer_id, key) WHERE key IS NOT NULL DO NOTHING`,
		p.IssuerID, c.ID, p.OrderID, p.IdempotencyKey, s.cfg.HashKeys.change(p.Request.Canonical), c.Type, c.State, address, p.Actor)
	if err != nil {
		return fmt.Errorf("storing a change: %w", err)
	}
	if tag.RowsAffected() == 0 { // another order's change took the key meanwhile
		if _, err = s.changeOfKey(ctx, tx, p); err == nil {
			err = errors.New("storing a change: its key is taken")
		}
		return err
	}
	return nil
}

// redirect gives an order that was not sent yet another address.
func (s *Store) redirect(ctx context.Context, tx pgx.Tx, o *lockedOrder, to *order.Address) error {
	var sealed []byte
	err := tx.QueryRow(ctx, `SELECT production FROM order_payload WHERE issuer_id = $1 AND order_id = $2`, o.issuer, o.id).Scan(&sealed)
	if err != nil {
		return fmt.Errorf("reading an order's content: %w", err)
	}
	text, err := s.cfg.Seal.open(sealed, columnProduction, o.issuer, o.id.String())
	if err != nil {
		return err
	}
	var production order.Production
	if err := json.Unmarshal(text, &production); err != nil || production.Shipment == nil {
		return errors.New("reading an order's content: it has no shipment")
	}
	production.Shipment.DeliveryAddress = to
	if text, err = production.Body(); err != nil {
		return err
	}
	if sealed, err = s.cfg.Seal.seal(text, columnProduction, o.issuer, o.id.String()); err != nil {
		return err
	}
	var b pgx.Batch
	exec(&b, `UPDATE order_payload SET production = $3 WHERE issuer_id = $1 AND order_id = $2`, o.issuer, o.id, sealed)
	queueRenewed(&b, o)
	if err := send(ctx, tx, &b); err != nil {
		return fmt.Errorf("storing an order's content: %w", err)
	}
	return nil
}

// queueRenewed gives the message of an order another id, unless a worker has it: a claim that
// began before this transaction ends would come to the message after that, and yet read the
// content that the order had when it began. It does not see the new id, and passes it.
func queueRenewed(b *pgx.Batch, o *lockedOrder) {
	exec(b, `UPDATE outbox SET id = DEFAULT WHERE issuer_id = $1 AND order_id = $2 AND kind = $3 AND claim_token IS NULL`,
		o.issuer, o.id, KindSubmit)
}

const (
	// expireBatch is how many changes expire in one transaction.
	expireBatch = 100
	// expireWithin is after how long no further order is dealt with by itself.
	expireWithin = 2 * time.Second
)

// ExpireChanges ends the waiting for D1's word on changes whose time is over. It returns
// how many there were; more may be left.
func (s *Store) ExpireChanges(ctx context.Context) (n int, err error) {
	keys, _, err := expiredChanges(ctx, s.pool, nil)
	if err != nil || len(keys) == 0 { // as a rule
		return 0, err
	}
	n, err = s.expireSome(ctx, keys)
	if err != nil && itsOwn(ctx, err) {
		n, err = s.expireEach(ctx, distinctKeys(keys))
	}
	if err != nil {
		return n, fmt.Errorf("letting changes expire: %w", err)
	}
	return n, nil
}

// itsOwn tells whether an error may be that of one order, and not of the database.
func itsOwn(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (!Unavailable(err) || isLockTimeout(err))
}

// expireEach deals with each order by itself: one that cannot be written, or that somebody
// keeps locked, must not keep the changes of the others waiting. Its own are tried again a
// minute later.
func (s *Store) expireEach(ctx context.Context, keys []orderKey) (sum int, err error) {
	begun := time.Now()
	for _, key := range keys {
		if time.Since(begun) > expireWithin {
			break // those that failed are put off, so that the others are the first next time
		}
		n, err := s.expireSome(ctx, []orderKey{key})
		if err != nil && !itsOwn(ctx, err) {
			return sum, err
		}
		if err != nil {
			s.cfg.Log.Error("changes of an order could not expire", "issuerId", key.issuer, "orderId", key.id, "error", err)
			if err := s.putOffExpiry(ctx, key); err != nil {
				return sum, err
			}
		}
		sum += n
	}
	return sum, nil
}

func (s *Store) putOffExpiry(ctx context.Context, key orderKey) error {
	var b pgx.Batch
	exec(&b, patience)
	exec(&b, `UPDATE order_changes SET expires_at = now() + interval '1 min'
		WHERE issuer_id = $1 AND order_id = $2 AND state IN ('REQUESTED', 'SENT') AND expires_at <= now()`, key.issuer, key.id)
	err := s.pool.SendBatch(ctx, &b).Close()
	if err != nil && itsOwn(ctx, err) { // it is among the first again
		s.cfg.Log.Error("changes of an order could not be put off", "issuerId", key.issuer, "orderId", key.id, "error", err)
		return nil
	}
	return err
}

// expireSome deals with orders in one transaction.
func (s *Store) expireSome(ctx context.Context, keys []orderKey) (n int, err error) {
	var locked map[orderKey]*lockedOrder
	err = s.inTx(ctx, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, patience); err != nil {
			return err
		}
		n = 0
		if locked, err = lockOrders(ctx, tx, keys); err != nil {
			return err
		}
		// Once more, under the locks: D1 may have answered meanwhile.
		_, expired, err := expiredChanges(ctx, tx, keys)
		if err != nil {
			return err
		}
		w := advances{store: s}
		for _, o := range locked {
			for _, c := range o.open {
				if !c.waits() || !expired[c.ID] {
					continue
				}
				c.Reason = order.ReasonNoAnswer
				if c.State == order.ChangeRequested && !c.Tried {
					c.Reason = order.ReasonNotSent
				}
				c.State = order.ChangeExpired
				w.moveChange(o, Cause{Kind: CauseTime}, changeRow{open: c})
				w.sendChange(o)
				n++
			}
		}
		var b pgx.Batch
		w.queue(&b)
		return send(ctx, tx, &b)
	})
	if err != nil {
		return 0, err
	}
	s.logChanges(ctx, locked)
	return n, nil
}

// expiredChanges finds changes whose time is over, of the given orders or of all.
func expiredChanges(ctx context.Context, db querier, of []orderKey) (keys []orderKey, expired map[uuid.UUID]bool, err error) {
	_, ids := columns(of)
	rows, err := db.Query(ctx, `
		SELECT issuer_id, order_id, id FROM order_changes
		WHERE state IN ('REQUESTED', 'SENT') AND expires_at <= now() AND ($1::uuid[] = '{}' OR order_id = ANY ($1))
		ORDER BY expires_at LIMIT $2`, ids, expireBatch)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for changes that expire: %w", err)
	}
	expired = make(map[uuid.UUID]bool)
	var key orderKey
	var id uuid.UUID
	_, err = pgx.ForEachRow(rows, []any{&key.issuer, &key.id, &id}, func() error {
		keys, expired[id] = append(keys, key), true
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("looking for changes that expire: %w", err)
	}
	return keys, expired, nil
}

// ChangeMessage is the change that a message of KindChange brings to D1; its body is the
// message's.
type ChangeMessage struct {
	ID   uuid.UUID
	Type order.ChangeType
}

// ChangeAnswer is what D1 answered to a change.
type ChangeAnswer struct {
	Taken       bool               // it has it; whether it does it, a notification tells
	OperationID string             // of the change, "" when D1 named none
	Reason      order.ChangeReason // why it was refused; "" for D1's plain no
	MayHave     bool               // it may be refused because an earlier try was taken, if there was one
}

// openChange is a change that D1 may still say something about. Those of an order stand in
// order_state.open_changes too, where the lock of the order reads them along: what
// advances an order costs no more for all those that nobody wants changed.
type openChange struct {
	ID          uuid.UUID          `json:"id"`
	Type        order.ChangeType   `json:"type"`
	State       order.ChangeState  `json:"state"`
	Reason      order.ChangeReason `json:"reason,omitempty"`
	OperationID string             `json:"operationId,omitempty"`
	Tried       bool               `json:"tried,omitempty"` // D1 may have it
	Batch       bool               `json:"batch,omitempty"` // it follows from the cancel of a batch

	note       string // why it is wanted, for its first event
	redirected bool   // the order has the new address
}

// waits tells whether the outcome is open.
func (c openChange) waits() bool {
	return c.State == order.ChangeRequested || c.State == order.ChangeSent
}

// forgotten tells that nothing can be heard of the change any more.
func (c openChange) forgotten() bool {
	settled := c.State == order.ChangeAccepted || c.State == order.ChangeRefused
	return settled && c.OperationID == "" && (!c.Tried || c.Reason == order.ReasonRefused)
}

// mayBe tells whether the change may be what a notification is about that is not of an
// operation known.
func (c openChange) mayBe(n *Notification) bool {
	return (c.waits() || c.State == order.ChangeExpired) && (c.OperationID == "" || n.OperationID == "")
}

// changeAtD1 is true for rows c of order_changes that D1 may have and may still answer, by
// a notification n whose operation is not known to be another's.
const changeAtD1 = changeWaits + ` AND c.sent_at IS NOT NULL`

// changeWaits is the same of those that D1 may have and those that it will get.
const changeWaits = `c.state IN ('REQUESTED', 'SENT', 'EXPIRED') AND (c.operation_id IS NULL OR n.operation_id = '')`

// changeRow is what becomes of a change.
type changeRow struct {
	key  orderKey
	open openChange
	sent bool // D1 may have got it now
}

// changeDetail is what the timeline tells of a change.
type changeDetail struct {
	ChangeID   uuid.UUID          `json:"changeId"`
	Type       order.ChangeType   `json:"type"`
	State      order.ChangeState  `json:"state"`
	Reason     order.ChangeReason `json:"reason,omitempty"`
	Redirected bool               `json:"redirected,omitempty"`
	Note       string             `json:"note,omitempty"`
}

// changeReported settles the change that an UPDATE_ORDER notification of the order is
// about. It tells whether the order has such a change, or certainly none: else the
// notification has to wait, for it may come before D1's answer to the change is stored.
func (a *advances) changeReported(o *lockedOrder, cause Cause, n *Notification) bool {
	c, found := reportedChange(o.open, n)
	if !found {
		return !slices.ContainsFunc(o.open, func(c openChange) bool { return c.mayBe(n) })
	}
	c.OperationID = cmp.Or(c.OperationID, n.OperationID)
	said := order.OperationStatus(n.Status)
	switch {
	case c.State == order.ChangeAccepted || c.Reason == order.ReasonRefused: // D1 has said so before
	case said == order.OperationSuccessful && c.Type == order.ChangeCancel:
		a.noteChange(o, changeRow{open: c})
		a.advance(o, cause, order.CancelDone{}) // which settles it, unless the card has left all the same
	case said == order.OperationSuccessful:
		c.State, c.Reason = order.ChangeAccepted, ""
		a.moveChange(o, cause, changeRow{open: c})
	case said == order.OperationFailed && c.State != order.ChangeRefused:
		c.State, c.Reason = order.ChangeRefused, order.ReasonRefused
		a.moveChange(o, cause, changeRow{open: c})
	case c.State == order.ChangeRequested || c.State == order.ChangeExpired: // it is under way
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c, sent: true})
	default:
		a.noteChange(o, changeRow{open: c})
	}
	a.sendChange(o)
	return true
}

// ShownChange is an UPDATE_ORDER operation of the order that D1 shows when it is asked.
type ShownChange struct {
	OperationID string
	Status      order.OperationStatus
}

// changeShown settles a change whose outcome no notification has told. D1 shows old changes
// too, so it is only by its operation that one is known.
func (a *advances) changeShown(o *lockedOrder, cause Cause, shown ShownChange) {
	open := slices.ContainsFunc(o.open, func(c openChange) bool {
		return c.OperationID == shown.OperationID && (c.waits() || c.State == order.ChangeExpired)
	})
	if open && shown.Status != order.OperationPending {
		a.changeReported(o, cause, &Notification{OperationID: shown.OperationID, Status: string(shown.Status)})
	}
}

// reportedChange finds the change that a notification is about: by its operation; else by
// its own id, for D1 may repeat that as the issuerRequestId; else the only one that D1 may
// have and that has no other operation.
func reportedChange(open []openChange, n *Notification) (openChange, bool) {
	var candidates []openChange
	for _, c := range open {
		switch {
		case n.OperationID != "" && c.OperationID == n.OperationID, n.IssuerRequestID == c.ID.String():
			return c, true
		case c.Tried && c.mayBe(n):
			candidates = append(candidates, c)
		}
	}
	if len(candidates) != 1 {
		return openChange{}, false
	}
	return candidates[0], true
}

// changeAnswered does what follows from a call that brought a change to D1. That D1 has
// the change is a fact, whoever holds its message by now; that it does not want it counts
// only for the holder, for another worker may have been luckier. It tells whether the
// message stays.
func (a *advances) changeAnswered(o *lockedOrder, done *Completion, held bool) (stays bool) {
	if done.Change != nil && done.Change.OperationID != "" {
		a.changeOperations = append(a.changeOperations, changeOperation{o.orderKey, done.Message.Change.ID, done.Change.OperationID})
	}
	i := slices.IndexFunc(o.open, func(c openChange) bool { return c.ID == done.Message.Change.ID })
	if i < 0 {
		return false // settled meanwhile
	}
	c, cause := o.open[i], Cause{Kind: CauseAttempt, ID: done.Attempt.ID.String()}
	switch answer := done.Change; {
	case answer != nil && answer.Taken:
		c.OperationID = cmp.Or(c.OperationID, answer.OperationID)
		if c.State != order.ChangeRequested && c.State != order.ChangeExpired {
			a.noteChange(o, changeRow{open: c, sent: true}) // told by a notification already, or settled
			break
		}
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c, sent: true})
	case !held || !c.waits():
		return false
	case answer != nil && answer.MayHave && c.Tried:
		c.State, c.Reason = order.ChangeSent, ""
		a.moveChange(o, cause, changeRow{open: c})
	case answer != nil:
		c.State, c.Reason = order.ChangeRefused, cmp.Or(answer.Reason, order.ReasonRefused)
		a.moveChange(o, cause, changeRow{open: c})
	default:
		if !done.Next.Unsent { // it may have it
			a.noteChange(o, changeRow{open: c, sent: true})
		}
		stays = true // unless a cancel goes first
	}
	a.sendChange(o)
	return stays
}

// changeOperation is an operation by which D1 knows a change. One that is sent again may
// have several.
type changeOperation struct {
	key         orderKey
	change      uuid.UUID
	operationID string
}

// placeCancel has D1 cancel an order if it turns out to have it: a worker has it, or D1 may,
// while somebody cancels its batch.
func (a *advances) placeCancel(o *lockedOrder, cause Cause) error {
	if o.cancelling() {
		return nil
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("making a change id: %w", err)
	}
	c := openChange{ID: id, Type: order.ChangeCancel, State: order.ChangeRequested, Batch: true}
	a.placed = append(a.placed, placedChange{o.orderKey, id, cause.Actor})
	a.noteChange(o, changeRow{open: c})
	a.changeEvent(o, cause, c)
	return nil
}

// placedChange is a cancel that follows from that of a batch.
type placedChange struct {
	key   orderKey
	id    uuid.UUID
	actor string
}

// cancelling tells whether a cancel of the order waits to be sent.
func (o *lockedOrder) cancelling() bool {
	return slices.ContainsFunc(o.open, func(c openChange) bool { return c.Type == order.ChangeCancel && c.State == order.ChangeRequested })
}

// withdrawCancels gives up the cancels of an order that somebody has sent after all.
func (a *advances) withdrawCancels(o *lockedOrder, cause Cause) {
	for _, c := range o.open { // moveChange makes a list of its own
		if c.Type == order.ChangeCancel && c.State == order.ChangeRequested && o.state.Rank == 0 {
			c.State, c.Reason = order.ChangeRefused, order.ReasonRetried
			a.moveChange(o, cause, changeRow{open: c})
		}
	}
}

// settleChanges does what an order's new state means for its changes: some are settled by
// it, and others can go to D1 now that it has the order.
func (a *advances) settleChanges(o *lockedOrder, cause Cause) {
	switch {
	case len(o.open) == 0:
		return
	case o.state.Status == order.Rejected && o.cancelling(): // D1 does not have it, and never will
		a.advance(o, cause, order.Cancel{})
		return
	}
	for _, c := range o.open { // moveChange makes a list of its own
		if state, reason := order.SettleChange(c.Type, c.State, o.state); state != c.State {
			c.State, c.Reason = state, reason
			a.moveChange(o, cause, changeRow{open: c})
		}
	}
	// Also when D1 had the order before: the release before does not look at changes.
	a.sendChange(o)
}

// moveChange gives a change of the order another state, which is an event.
func (a *advances) moveChange(o *lockedOrder, cause Cause, r changeRow) {
	a.noteChange(o, r)
	var evidence []order.Evidence
	if r.open.State == order.ChangeExpired {
		evidence = append(evidence, order.Notice{Attention: order.AttentionChangeUnanswered})
	} else if !slices.ContainsFunc(o.open, func(c openChange) bool { return c.State == order.ChangeExpired }) {
		evidence = append(evidence, order.Cured{Attention: order.AttentionChangeUnanswered})
	}
	if c := r.open; c.Batch && c.State == order.ChangeRefused && order.MayStillArrive(c.Type, c.State, c.Reason) {
		evidence = append(evidence, order.Notice{Attention: order.AttentionStopTooLate}) // nobody waits for this one's outcome
	}
	a.changeEvent(o, cause, r.open, evidence...)
}

// changeEvent gives the order a version that tells of a change.
func (a *advances) changeEvent(o *lockedOrder, cause Cause, c openChange, evidence ...order.Evidence) {
	before := o.state
	o.state, _ = order.Advance(before, a.store.clock(o), append(evidence, order.Details{})...)
	cause.Detail, _ = json.Marshal(changeDetail{c.ID, c.Type, c.State, c.Reason, c.redirected, c.note}) // texts and an id: it cannot fail
	o.changes = append(o.changes, change{before, o.state, cause})
	a.touch(o)
	a.events = append(a.events, event{o.orderKey, EventChangeChanged, o.state, before.Status, cause})
}

// noteChange notes what is to be written of a change, and keeps the order's list of them as
// it then is.
func (a *advances) noteChange(o *lockedOrder, r changeRow) {
	r.key, r.open.Tried = o.orderKey, r.open.Tried || r.sent
	if i := slices.IndexFunc(a.changes, func(known changeRow) bool { return known.open.ID == r.open.ID }); i >= 0 {
		r.sent = r.sent || a.changes[i].sent
		a.changes[i] = r
	} else {
		a.changes = append(a.changes, r)
	}
	// A list of its own: callers go through the old one, or come back to it.
	open := slices.DeleteFunc(slices.Clone(o.open), func(c openChange) bool { return c.ID == r.open.ID })
	if !r.open.forgotten() {
		open = append(open, r.open)
	}
	slices.SortFunc(open, func(x, y openChange) int { return slices.Compare(x.ID[:], y.ID[:]) })
	o.open = open
	if !slices.Contains(a.changing, o) {
		a.changing = append(a.changing, o)
	}
}

// sendChange has the next change of an order brought to D1, if there is one and D1 has the
// order.
func (a *advances) sendChange(o *lockedOrder) {
	if !slices.Contains(a.sending, o) {
		a.sending = append(a.sending, o)
	}
}

// nextChange is the change that D1 is to be told of next. A cancel goes first: what else
// was wanted is of no use then.
func (o *lockedOrder) nextChange() (next openChange, ok bool) {
	if !o.state.AtD1() {
		return next, false
	}
	for _, c := range o.open {
		if c.State == order.ChangeRequested && (!ok || c.Type == order.ChangeCancel && next.Type != order.ChangeCancel) {
			next, ok = c, true
		}
	}
	return next, ok
}

// queueChanges queues what becomes of changes, and the messages that bring them to D1.
func (a *advances) queueChanges(b *pgx.Batch) {
	if len(a.changing) == 0 && len(a.sending) == 0 && len(a.changeOperations) == 0 {
		return
	}
	a.queueChangeOperations(b)
	a.queuePlacedChanges(b)
	a.queueOpenChanges(b)
	a.queueChangeRows(b)
	a.queueChangeMessages(b)
}

func (a *advances) queuePlacedChanges(b *pgx.Batch) {
	n := len(a.placed)
	if n == 0 {
		return
	}
	issuers, ids, orders, actors := make(texts, n), make(uuids, n), make(uuids, n), make(texts, n)
	for i := range a.placed {
		c := &a.placed[i]
		issuers[i], ids[i], orders[i], actors[i] = c.key.issuer, pgID(&c.id), pgID(&c.key.id), c.actor
	}
	exec(b, `
		INSERT INTO order_changes (issuer_id, id, order_id, type, state, created_by)
		SELECT i, c, o, $5, $6, a FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[]) AS t(i, c, o, a)`,
		issuers, ids, orders, actors, order.ChangeCancel, order.ChangeRequested)
}

func (a *advances) queueOpenChanges(b *pgx.Batch) {
	if len(a.changing) == 0 {
		return
	}
	issuers, ids := columns(keysOf(a.changing))
	lists := make(texts, len(a.changing))
	for i, o := range a.changing {
		if len(o.open) > 0 {
			list, _ := json.Marshal(o.open) // texts and ids: it cannot fail
			lists[i] = string(list)
		}
	}
	exec(b, `
		UPDATE order_state s SET open_changes = nullif(t.open, '')::jsonb
		FROM unnest($1::text[], $2::uuid[], $3::text[]) AS t(issuer_id, order_id, open)
		WHERE s.issuer_id = t.issuer_id AND s.order_id = t.order_id`, issuers, ids, lists)
}

// queueChangeOperations queues what D1 calls changes, also those that are settled.
func (a *advances) queueChangeOperations(b *pgx.Batch) {
	n := len(a.changeOperations)
	if n == 0 {
		return
	}
	issuers, orders, ids, operations := make(texts, n), make(uuids, n), make(uuids, n), make(texts, n)
	for i := range a.changeOperations {
		c := &a.changeOperations[i]
		issuers[i], orders[i], ids[i], operations[i] = c.key.issuer, pgID(&c.key.id), pgID(&c.change), c.operationID
	}
	exec(b, insertChangeOperations, issuers, operations, orders, OperationChange, AttemptChange)
	exec(b, `
		UPDATE order_changes c SET operation_id = t.operation_id
		FROM unnest($1::text[], $2::uuid[], $3::text[]) AS t(issuer_id, id, operation_id)
		WHERE c.issuer_id = t.issuer_id AND c.id = t.id AND c.operation_id IS NULL`, issuers, ids, operations)
}

const insertChangeOperations = `
	INSERT INTO operations (issuer_id, operation_id, order_id, operation, source)
	SELECT i, p, o, $4, $5 FROM unnest($1::text[], $2::text[], $3::uuid[]) AS t(i, p, o) WHERE p <> '' ORDER BY i, p
	ON CONFLICT DO NOTHING`

// queueChangeRows queues the new states of changes, and the ends of the messages of those
// that need no sending any more. An address is of no use once D1 does not want it.
func (a *advances) queueChangeRows(b *pgx.Batch) {
	n := len(a.changes)
	if n == 0 {
		return
	}
	issuers, orders, ids := make(texts, n), make(uuids, n), make(uuids, n)
	states, reasons, operations, sents := make(texts, n), make(texts, n), make(texts, n), make([]bool, n)
	timeouts := make([]time.Duration, n)
	for i := range a.changes {
		r := &a.changes[i]
		issuers[i], orders[i], ids[i] = r.key.issuer, pgID(&r.key.id), pgID(&r.open.ID)
		states[i], reasons[i], operations[i], sents[i] = string(r.open.State), string(r.open.Reason), r.open.OperationID, r.sent
		timeouts[i] = a.store.changeTimeout(r.key.issuer)
	}
	exec(b, `
		UPDATE order_changes c SET state = t.state, reason = nullif(t.reason, ''), updated_at = clock_timestamp(),
			operation_id = coalesce(nullif(t.operation_id, ''), c.operation_id),
			sent_at = CASE WHEN t.sent THEN now() ELSE c.sent_at END,
			expires_at = CASE WHEN t.state = 'SENT' AND c.state <> 'SENT' THEN now() + t.timeout ELSE c.expires_at END,
			address = CASE WHEN t.state <> 'REFUSED' THEN c.address END
		FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::interval[])
			AS t(issuer_id, id, state, reason, operation_id, sent, timeout)
		WHERE c.issuer_id = t.issuer_id AND c.id = t.id`,
		issuers, ids, states, reasons, operations, sents, timeouts)
	exec(b, insertChangeOperations, issuers, operations, orders, OperationChange, AttemptChange)
	exec(b, `
		DELETE FROM outbox m USING unnest($1::text[], $2::uuid[], $3::uuid[], $4::text[]) AS t(issuer_id, order_id, id, state)
		WHERE m.issuer_id = t.issuer_id AND m.order_id = t.order_id AND m.kind = 'change' AND m.change_id = t.id AND t.state <> 'REQUESTED'`,
		issuers, orders, ids, states)
}

// queueChangeMessages queues the messages that bring changes to D1, one for an order. One
// that a worker has goes first, and the next follows from its answer: what becomes of that
// message is queued before. One that brings another change is another message: see
// queueRenewed.
func (a *advances) queueChangeMessages(b *pgx.Batch) {
	var issuers, cards texts
	var orders, ids uuids
	var timeouts []time.Duration
	for _, o := range a.sending {
		if c, ok := o.nextChange(); ok {
			issuers, orders, cards, ids = append(issuers, o.issuer), append(orders, pgID(&o.id)), append(cards, o.cardID), append(ids, pgID(&c.ID))
			timeouts = append(timeouts, a.store.changeTimeout(o.issuer))
		}
	}
	if len(ids) == 0 {
		return
	}
	exec(b, `
		INSERT INTO outbox AS m (lane, kind, class, issuer_id, order_id, card_id, change_id)
		SELECT $5 || i, $6, $7, i, o, c, id FROM unnest($1::text[], $2::uuid[], $3::text[], $4::uuid[]) AS t(i, o, c, id) ORDER BY i, o
		ON CONFLICT (issuer_id, order_id, kind) DO UPDATE SET change_id = EXCLUDED.change_id, run_at = now(), tries = 0, id = DEFAULT
		WHERE m.claim_token IS NULL AND m.change_id <> EXCLUDED.change_id`,
		issuers, orders, cards, ids, LaneOf(""), KindChange, ClassSingle)
	exec(b, `
		UPDATE order_changes c SET expires_at = now() + t.timeout
		FROM unnest($1::text[], $2::uuid[], $3::interval[]) AS t(issuer_id, id, timeout)
		WHERE c.issuer_id = t.issuer_id AND c.id = t.id AND c.expires_at IS NULL`, issuers, ids, timeouts)
}

// changeTimeout is for how long D1 may leave a change of an issuer's unanswered.
func (s *Store) changeTimeout(issuer string) time.Duration {
	if s.cfg.ChangeTimeout != nil {
		if timeout := s.cfg.ChangeTimeout(issuer); timeout > 0 {
			return timeout
		}
	}
	return 72 * time.Hour
}

// claimedChange is what a claim reads of a change.
type claimedChange struct {
	id      pgtype.UUID
	kind    *order.ChangeType
	address pgtype.DriverBytes // good until the next row
}

// openChangeBody puts together what D1 is sent about a change.
func (s *Store) openChangeBody(m *Message, c claimedChange) (*ChangeMessage, []byte, error) {
	if c.kind == nil {
		return &ChangeMessage{}, nil, errors.New("reading a change: there is none")
	}
	change := &ChangeMessage{ID: c.id.Bytes, Type: *c.kind}
	var address []byte
	if c.address != nil {
		var err error
		if address, err = s.cfg.Seal.open(c.address, columnChangeAddress, m.IssuerID, change.ID.String()); err != nil {
			return change, nil, err
		}
	}
	body, err := order.ChangeBody(change.Type, m.IssuerRequestID, address)
	return change, body, err
}
