package store

import (
	"cmp"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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
