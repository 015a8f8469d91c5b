package client

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"time"
)

// Refresh has D1 asked how an order stands, and returns the order as it is before,
// with Asking set. Read it again until Asking is gone: it then is as D1 says. The
// problem is [ProblemNotSent] when D1 has never heard of the order.
func (c *Client) Refresh(ctx context.Context, orderID string) (*Order, error) {
	r, err := actionRequest("refreshing an order", orderPath(orderID, "/refresh"), nil)
	if err != nil {
		return nil, err
	}
	return get[Order](ctx, c, r)
}

// Retry is what [Client.Retry] may change.
type Retry struct {
	// EncryptedData is a JWE that takes the place of the order's.
	EncryptedData string `json:"encryptedData,omitempty"`
	// DuplicateOverride says why a second card is wanted, where the card has another
	// order by now.
	DuplicateOverride *DuplicateOverride `json:"duplicateOverride,omitempty"`
	// Version is the one that the order must still have; 0 means any. The problem is
	// [ProblemVersionMismatch] when it has another.
	Version int `json:"-"`
}

// Format prints nothing of card data.
func (r Retry) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{retry of version %d}", r.Version)
}

// LogValue logs what Format prints.
func (r Retry) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// Retry starts the sending of an order anew that was rejected, was given up, or
// whose outcome is unknown. It stays the same order with the same IssuerRequestID
// and makes one card, however often it is called.
//
// As every call it is repeated after a lost answer. When the lost one did it, the
// repetition gets [ProblemNotRetryable] or [ProblemVersionMismatch]: read the order
// to see whether it is on its way.
func (c *Client) Retry(ctx context.Context, orderID string, with Retry) (*Order, error) {
	return c.act(ctx, "retrying an order", orderPath(orderID, "/retry"), with, with.Version)
}

// act makes a call that does something with an order, if that has a given version.
func (c *Client) act(ctx context.Context, doing, path string, body any, version int) (*Order, error) {
	r, err := actionRequest(doing, path, body)
	if err != nil {
		return nil, err
	}
	r.match(version)
	return get[Order](ctx, c, r)
}

// match makes a call do nothing unless the order has a version; 0 means any.
func (r *request) match(version int) {
	if version != 0 {
		r.header.Set("If-Match", `"`+strconv.Itoa(version)+`"`)
	}
}

func orderPath(orderID, more string) string { return "/orders/" + url.PathEscape(orderID) + more }

// Replayed is what became of a notification that was applied again.
type Replayed struct {
	ID      int64  `json:"id"`
	Outcome string `json:"outcome"` // applied, parked, unapplied, ignored, foreign, repeated
	OrderID string `json:"orderId"` // "" when no order was found
}

// ReplayNotification has a stored notification applied again, by what is known and set
// today. One that its order has heard changes nothing.
func (c *Client) ReplayNotification(ctx context.Context, id int64) (*Replayed, error) {
	r, err := actionRequest("replaying a notification", "/notifications/"+strconv.FormatInt(id, 10)+"/replay", nil)
	if err != nil {
		return nil, err
	}
	return get[Replayed](ctx, c, r)
}

// Replay says which notifications are to be applied again: those that came in a time.
type Replay struct {
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`                // later than From
	Outcome string    `json:"outcome,omitempty"` // only those of which this became
	Cursor  string    `json:"cursor,omitempty"`  // the NextCursor of the answer before
}

// Replays is what became of notifications that were applied again.
type Replays struct {
	Replayed   int            `json:"replayed"`
	Outcomes   map[string]int `json:"outcomes"`
	NextCursor string         `json:"nextCursor"` // "" when there are no more
}

// ReplayNotifications has stored notifications applied again, as many as one call may
// take: go on with the NextCursor until there is none.
func (c *Client) ReplayNotifications(ctx context.Context, which Replay) (*Replays, error) {
	r, err := actionRequest("replaying notifications", "/notifications/replay", which)
	if err != nil {
		return nil, err
	}
	return get[Replays](ctx, c, r)
}
