package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// HoldRequest is what [Client.Hold] says.
type HoldRequest struct {
	Reason string `json:"reason,omitempty"` // for the timeline, where it rests in clear
	// Version is the one that the order must still have; 0 means any. The problem is
	// [ProblemVersionMismatch] when it has another.
	Version int `json:"-"`
}

// Hold keeps an order from being sent until somebody releases it. It is HELD at once, or
// has HoldPending set: then it is held if D1 turns out not to have it. The problem is
// [ProblemNotHoldable] when D1 has it, or it has ended.
func (c *Client) Hold(ctx context.Context, orderID string, with HoldRequest) (*Order, error) {
	return c.act(ctx, "holding an order", orderPath(orderID, "/hold"), with, with.Version)
}

// ReleaseRequest is what [Client.Release] says.
type ReleaseRequest struct {
	Reason string `json:"reason,omitempty"` // for the timeline, where it rests in clear
	// DuplicateOverride says why a second card is wanted, where the card has another
	// order by now.
	DuplicateOverride *DuplicateOverride `json:"duplicateOverride,omitempty"`
	// Version is the one that the order must still have; 0 means any.
	Version int `json:"-"`
}

// Release lifts the hold of an order, or takes back one that is pending. When an earlier
// call did it whose answer got lost, the problem is [ProblemNotHeld] or
// [ProblemVersionMismatch].
func (c *Client) Release(ctx context.Context, orderID string, with ReleaseRequest) (*Order, error) {
	return c.act(ctx, "releasing an order", orderPath(orderID, "/release"), with, with.Version)
}

// Note is what somebody wrote about an order.
type Note struct {
	ID        string    `json:"id"`
	Text      string    `json:"text"`
	Author    string    `json:"author"`
	CreatedAt time.Time `json:"createdAt"`
}

// Format prints the note's id only.
func (n Note) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "{note %s}", n.ID) }

// LogValue logs what Format prints.
func (n Note) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(n)) }

// AddNote writes a note about an order, once, however often the call is repeated.
func (c *Client) AddNote(ctx context.Context, orderID, text string) (*Note, error) {
	r, err := actionRequest("adding a note", orderPath(orderID, "/notes"), map[string]string{"text": text})
	if err != nil {
		return nil, err
	}
	r.header.Set(keyHeader, rand.Text())
	return get[Note](ctx, c, r)
}

// ClearAttention says that an attention of an order was dealt with, and how. The problem
// is [ProblemNotRaised] when the order has none with this code. version is the one that
// the order must still have; 0 means any.
func (c *Client) ClearAttention(ctx context.Context, orderID, code, note string, version int) (*Order, error) {
	path := orderPath(orderID, "/attention/"+url.PathEscape(code)+"/clear")
	return c.act(ctx, "clearing an attention", path, map[string]string{"note": note}, version)
}

// Reorder is what an order may differ in from the one that it stands in for.
type Reorder struct {
	IssuerRequestID string   `json:"issuerRequestId,omitempty"` // made by the service when empty
	DeliveryAddress *Address `json:"deliveryAddress,omitempty"`
	// At most one of the two. Without, the first order's card data serves again, if D1's
	// key for it is in use still; else the problem is [ProblemCardDataRequired].
	EncryptedData string         `json:"encryptedData,omitempty"`
	SensitiveData *SensitiveData `json:"sensitiveData,omitempty"`

	DuplicateOverride *DuplicateOverride `json:"duplicateOverride,omitempty"`
	Reason            string             `json:"reason,omitempty"` // for the timeline, where it rests in clear
	// Version is the one that the first order must still have; 0 means any.
	Version int `json:"-"`
}

// Format prints the new order's id only.
func (r Reorder) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{request %q}", r.IssuerRequestID)
}

// LogValue logs what Format prints.
func (r Reorder) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// body is r as the service takes it, card data included.
func (r *Reorder) body() ([]byte, error) {
	type plain Reorder
	if r.SensitiveData == nil {
		return json.Marshal((*plain)(r))
	}
	return json.Marshal(struct {
		*plain
		SensitiveData any `json:"sensitiveData"`
	}{(*plain)(r), r.SensitiveData.inClear()})
}

// Reorder orders again what failed, was cancelled, or came back: a new order that stands in
// for the first one. The problem is [ProblemNotReorderable] when the first one's card may
// still come. As with PlaceOrder, give an idempotency key that you made and stored before
// the call; one is made for the call when it is empty.
func (c *Client) Reorder(ctx context.Context, orderID string, with Reorder, idempotencyKey string) (Placed, error) {
	const doing = "ordering a card again"
	placed := Placed{IdempotencyKey: idempotencyKey}
	if idempotencyKey == "" {
		placed.IdempotencyKey = rand.Text()
	}
	if err := checkKey(placed.IdempotencyKey); err != nil {
		return placed, fmt.Errorf("cardorder: %s: %w", doing, err)
	}
	body, err := with.body()
	if err != nil {
		return placed, fmt.Errorf("cardorder: %s: writing it as JSON failed", doing)
	}
	r, err := actionRequest(doing, orderPath(orderID, "/reorder"), json.RawMessage(body))
	if err != nil {
		return placed, err
	}
	r.header.Set(keyHeader, placed.IdempotencyKey)
	r.match(with.Version)
	return c.place(ctx, r, placed)
}
