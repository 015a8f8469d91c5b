package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// ChangeType is what is to change of an order.
type ChangeType string

const (
	ChangeCancel                ChangeType = "CANCEL"                  // cancel and destroy
	ChangeAccelerate            ChangeType = "ACCELERATE"              // as soon as possible, by express carrier
	ChangeRedirect              ChangeType = "REDIRECT"                // to a new address
	ChangeAccelerateAndRedirect ChangeType = "ACCELERATE_AND_REDIRECT" // both
)

// ChangeState is what became of a change.
type ChangeState string

const (
	ChangeRequested ChangeState = "REQUESTED" // stored, waiting to be sent
	ChangeSent      ChangeState = "SENT"      // D1 has it, and has not said yet whether it does it
	ChangeAccepted  ChangeState = "ACCEPTED"  // done
	ChangeRefused   ChangeState = "REFUSED"   // not done
	ChangeExpired   ChangeState = "EXPIRED"   // D1 never said
)

// NewChange is a change of an order that is wanted.
type NewChange struct {
	Type ChangeType `json:"type"`
	// NewDeliveryAddress is for the types that redirect, and required there.
	NewDeliveryAddress *Address `json:"newDeliveryAddress,omitempty"`
	// Note is shown in the order's timeline.
	Note string `json:"note,omitempty"`
	// IdempotencyKey names the change (1 to 128 visible ASCII characters): the same one
	// again leads to the same change. Where it is empty [Client.ChangeOrder] makes one,
	// which is good for the repetitions within that call.
	IdempotencyKey string `json:"-"`
	// Version is the one that the order must still have; 0 means any. The problem is
	// [ProblemVersionMismatch] when it has another.
	Version int `json:"-"`
}

// Format prints no address.
func (n NewChange) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{%s}", n.Type) }

// LogValue logs what Format prints.
func (n NewChange) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(n)) }

// Change is a change of an order as it stands.
type Change struct {
	ID      string      `json:"id"`
	OrderID string      `json:"orderId"`
	Type    ChangeType  `json:"type"`
	State   ChangeState `json:"state"`
	Reason  string      `json:"reason"` // why it has the state, where that needs one
	// MayStillArrive tells of a cancel that the card may arrive all the same.
	MayStillArrive bool       `json:"mayStillArrive"`
	OperationID    string     `json:"operationId"` // D1's
	CreatedAt      time.Time  `json:"createdAt"`
	CreatedBy      string     `json:"createdBy"`
	UpdatedAt      time.Time  `json:"updatedAt"`
	SentAt         *time.Time `json:"sentAt"`    // the last moment at which D1 may have got it
	ExpiresAt      *time.Time `json:"expiresAt"` // when D1 has to have answered
}

// PlacedChange is what ChangeOrder led to.
type PlacedChange struct {
	Change
	Replayed bool // the change was there before
	// IdempotencyKey is the one that was sent; it is there after an error too, for another
	// call that asks for the same.
	IdempotencyKey string
}

// ChangeOrder cancels, accelerates or redirects an order. What D1 does not have yet is
// changed at once, exactly: the answer is [ChangeAccepted]. Else D1 is asked to; read the
// change until it is neither [ChangeRequested] nor [ChangeSent], which may take a day.
//
// The problem is [ProblemAlreadyShipped] or [ProblemNotChangeable] when nothing can be
// changed any more, and [ProblemChangePending] while another change waits to be sent.
func (c *Client) ChangeOrder(ctx context.Context, orderID string, n NewChange) (PlacedChange, error) {
	placed := PlacedChange{IdempotencyKey: n.IdempotencyKey}
	if n.IdempotencyKey == "" {
		placed.IdempotencyKey = rand.Text()
	}
	const doing = "changing an order"
	if err := checkKey(placed.IdempotencyKey); err != nil {
		return placed, fmt.Errorf("cardorder: %s: %w", doing, err)
	}
	r, err := actionRequest(doing, orderPath(orderID, "/changes"), n)
	if err != nil {
		return placed, err
	}
	r.header.Set(keyHeader, placed.IdempotencyKey)
	if n.Version != 0 {
		r.header.Set("If-Match", `"`+strconv.Itoa(n.Version)+`"`)
	}
	header, err := c.ask(ctx, r, &placed.Change)
	if err == nil && placed.ID == "" {
		err = fmt.Errorf("cardorder: %s: %w", doing, errNotExpected)
	}
	placed.Replayed = header.Get(replayHeader) == "true"
	return placed, err
}

// Change returns one change of an order.
func (c *Client) Change(ctx context.Context, orderID, changeID string) (*Change, error) {
	return get[Change](ctx, c, &request{
		doing: "reading a change", method: http.MethodGet, path: orderPath(orderID, "/changes/"+url.PathEscape(changeID)),
	})
}

// ChangeFilter says which part of the list is returned.
type ChangeFilter struct {
	Limit  int    // of a page, at most 200; 0 means 50
	Cursor string // NextCursor of the page before
}

// ChangePage is a part of a list, newest first. NextCursor leads to the next one; it is
// empty at the end.
type ChangePage struct {
	Data       []Change `json:"data"`
	NextCursor string   `json:"nextCursor"`
}

// Changes returns one page of the changes of an order.
func (c *Client) Changes(ctx context.Context, orderID string, f ChangeFilter) (*ChangePage, error) {
	q := make(url.Values)
	if f.Cursor != "" {
		q.Set("cursor", f.Cursor)
	}
	setLimit(q, f.Limit)
	return get[ChangePage](ctx, c, &request{doing: "listing changes", method: http.MethodGet, path: orderPath(orderID, "/changes"), query: q})
}
