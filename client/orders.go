package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	keyHeader    = "Idempotency-Key"
	replayHeader = "Idempotent-Replayed"
)

// Placed is an order that the service has.
type Placed struct {
	Order
	// Replayed tells that the service had this order before: by an earlier call, or
	// by an attempt of this one whose answer got lost.
	Replayed bool
	// IdempotencyKey is the key that was sent, given or made here; empty where
	// IssuerRequestID alone identified the order.
	IdempotencyKey string
}

// PlaceOrder places an order. However often it is sent, it is ordered once: the
// service recognizes it by its IssuerRequestID or by idempotencyKey (1 to 128
// visible ASCII characters, may be empty).
//
// Give one of the two, made and stored by you before the call, and call again
// with the same after any error that is not a [*Problem] with a status below 500.
// Where there is neither, a key is made for this call. That makes its own
// repetitions safe and is returned, together with an error too, so that you can
// go on with it; but a process that dies here takes it along, and then nobody
// knows whether the card was ordered.
func (c *Client) PlaceOrder(ctx context.Context, o *NewOrder, idempotencyKey string) (Placed, error) {
	placed := Placed{IdempotencyKey: idempotencyKey}
	if idempotencyKey == "" && o.IssuerRequestID == "" {
		placed.IdempotencyKey = rand.Text()
	}
	r, err := orderRequest("placing an order", o, placed.IdempotencyKey)
	if err != nil {
		return placed, err
	}
	return c.place(ctx, r, placed)
}

// place makes a call that leads to an order.
func (c *Client) place(ctx context.Context, r *request, placed Placed) (Placed, error) {
	header, err := c.ask(ctx, r, &placed.Order)
	if err == nil && placed.ID == "" {
		err = fmt.Errorf("cardorder: %s: %w", r.doing, errNotExpected)
	}
	placed.Replayed = header.Get(replayHeader) == "true"
	return placed, err
}

// What DryRun.Outcome says.
const (
	OutcomeAccepted = "accepted" // a new order
	OutcomeReplayed = "replayed" // an order that is there already
	OutcomeRefused  = "refused"  // of a row of a batch
)

// DryRun is what would become of an order that the service would take.
type DryRun struct {
	Outcome string `json:"outcome"` // OutcomeAccepted or OutcomeReplayed
	Order   string `json:"order"`   // OutcomeReplayed: of the order that is there
	Status  Status `json:"status"`
	EndsAt  Status `json:"endsAt"`
	Times
	Program string `json:"program"` // that it falls under, where there are programs
	// PrintedName is how the cardholder's name will stand on the card, where the
	// order has SensitiveData.
	PrintedName string   `json:"printedName"`
	Warnings    []string `json:"warnings"`
}

// DryRun tells what PlaceOrder would do, and stores nothing. What would be
// refused is refused with the very same [*Problem].
func (c *Client) DryRun(ctx context.Context, o *NewOrder, idempotencyKey string) (*DryRun, error) {
	if idempotencyKey == "" && o.IssuerRequestID == "" {
		idempotencyKey = rand.Text()
	}
	r, err := orderRequest("trying an order out", o, idempotencyKey)
	if err != nil {
		return nil, err
	}
	r.query = url.Values{"dryRun": {"true"}}
	return get[DryRun](ctx, c, r)
}

func orderRequest(doing string, o *NewOrder, key string) (*request, error) {
	if err := checkKey(key); err != nil {
		return nil, fmt.Errorf("cardorder: %s: %w", doing, err)
	}
	body, err := o.body()
	if err != nil {
		return nil, fmt.Errorf("cardorder: %s: writing it as JSON failed", doing)
	}
	r := &request{doing: doing, method: http.MethodPost, path: "/orders", body: body, header: http.Header{"Content-Type": {"application/json"}}}
	if key != "" {
		r.header.Set(keyHeader, key)
	}
	return r, nil
}

// checkKey finds what net/http would not send at all.
func checkKey(key string) error {
	if len(key) > 128 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("an idempotency key must be 1 to 128 visible ASCII characters")
	}
	return nil
}

// Order returns an order as it is now.
func (c *Client) Order(ctx context.Context, orderID string) (*Order, error) {
	return get[Order](ctx, c, &request{doing: "reading an order", method: http.MethodGet, path: orderPath(orderID, "")})
}

// Timeline returns all that ever happened to an order, oldest first.
func (c *Client) Timeline(ctx context.Context, orderID string) ([]TimelineEntry, error) {
	page, err := get[struct {
		Data []TimelineEntry `json:"data"`
	}](ctx, c, &request{doing: "reading a timeline", method: http.MethodGet, path: orderPath(orderID, "/timeline")})
	if err != nil {
		return nil, err
	}
	return page.Data, nil
}

// OrderFilter says which orders are listed: those that meet all that is set.
type OrderFilter struct {
	Statuses            []Status // any of them
	CardID              string
	ConsumerID          string
	IssuerRequestID     string
	IdempotencyKey      string
	OperationID         string // D1's
	TrackingNumber      string
	CardProductID       string
	DistributionChannel Channel
	GroupID             string
	BatchID             string
	Attention           bool      // only what needs a human
	AttentionCode       string    // only what needs a human for this
	Late                bool      // only what is late
	CreatedFrom         time.Time // inclusive
	CreatedTo           time.Time // exclusive

	Limit  int    // of a page, at most 200; 0 means 50
	Cursor string // NextCursor of the page before
}

func (f OrderFilter) query() url.Values {
	statuses := make([]string, len(f.Statuses))
	for i, s := range f.Statuses {
		statuses[i] = string(s)
	}
	q := make(url.Values)
	for name, value := range map[string]string{
		"status": strings.Join(statuses, ","), "cardId": f.CardID, "consumerId": f.ConsumerID,
		"issuerRequestId": f.IssuerRequestID, "idempotencyKey": f.IdempotencyKey, "operationId": f.OperationID,
		"trackingNumber": f.TrackingNumber, "cardProductId": f.CardProductID, "distributionChannel": string(f.DistributionChannel),
		"groupId": f.GroupID, "batchId": f.BatchID, "cursor": f.Cursor,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	switch {
	case f.AttentionCode != "":
		q.Set("attention", f.AttentionCode)
	case f.Attention:
		q.Set("attention", "true")
	}
	if f.Late {
		q.Set("late", "true")
	}
	for name, at := range map[string]time.Time{"createdFrom": f.CreatedFrom, "createdTo": f.CreatedTo} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	setLimit(q, f.Limit)
	return q
}

func setLimit(q url.Values, limit int) {
	if limit != 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
}

// OrderPage is a part of a list, newest first. NextCursor leads to the next one;
// it is empty at the end.
type OrderPage struct {
	Data       []Order `json:"data"`
	NextCursor string  `json:"nextCursor"`
}

// Orders returns one page of the orders that f lets through.
func (c *Client) Orders(ctx context.Context, f OrderFilter) (*OrderPage, error) {
	return get[OrderPage](ctx, c, &request{doing: "listing orders", method: http.MethodGet, path: "/orders", query: f.query()})
}

// AllOrders goes through all orders that f lets through, newest first, page by
// page; f.Limit is the size of a page. It ends after an error.
func (c *Client) AllOrders(ctx context.Context, f OrderFilter) iter.Seq2[*Order, error] {
	return func(yield func(*Order, error) bool) {
		f := f // for whoever goes through twice
		for {
			page, err := c.Orders(ctx, f)
			if err == nil && page.NextCursor != "" && page.NextCursor == f.Cursor {
				err = fmt.Errorf("cardorder: listing orders: the list leads to itself: %w", errNotExpected)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Data {
				if !yield(&page.Data[i], nil) {
					return
				}
			}
			if page.NextCursor == "" {
				return
			}
			f.Cursor = page.NextCursor
		}
	}
}
