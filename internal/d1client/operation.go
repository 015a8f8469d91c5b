package d1client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"
	"unicode"

	"cardorder/internal/order"
)

// Operation is one operation of D1 on a card, as notifications and the production
// status tell it. A member that D1 left out, or sent in another type or form than
// documented, is empty; values are kept whether known or not, since D1 may add some
// at any time. It prints its ids only.
type Operation struct {
	OperationID string // ^[A-Za-z0-9_-]{1,64}$; the same through all steps of an order
	Operation   string // PRODUCE, UPDATE_ORDER, ...
	Status      string // PENDING, SUCCESSFUL, FAILED: of the operation, not of the card
	StartTime   time.Time
	EndTime     time.Time // zero until completed
	CardID      string    // ^[A-Za-z0-9_-]{1,48}$

	IssuerRequestID string // from the top level, else from details
	InputFileName   string // likewise
	// NotByCard tells that the operation names a request or a file in a form that
	// cannot be one of ours, or a file at all: it belongs to somebody, so its card
	// alone proves nothing.
	NotByCard bool
	ErrorCode string

	Details Details

	// Raw is the element as it was received.
	Raw []byte
}

// Details is an operation's details member.
type Details struct {
	Status         string // of the physical card: CARD_PROD_REQUESTED, ...
	Reason         string // free text
	ProductionSite string
	TrackingType   string // PRODUCTION, SHIPMENT, RETURN

	// DueDate is the estimated shipping date, in the zone D1 wrote it in. When
	// DueDateOnly is true D1 gave a day, and DueDate is its beginning in UTC. When
	// DueDateZoneless is true it gave a time in no zone, which is read as if in UTC.
	DueDate         time.Time
	DueDateOnly     bool
	DueDateZoneless bool

	Shipment Shipment
}

// Shipment is what the carrier tells.
type Shipment struct {
	Carrier        string
	TrackingNumber string
	Status         string
	Message        string // free text
	TrackingURL    string // an absolute http or https URL, else empty
}

// Format prints the ids for every verb: free texts and Raw may hold personal data.
func (o Operation) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{%s %q %s card %q}", o.Operation, o.OperationID, o.Status, o.CardID)
}

// LogValue logs what Format prints.
func (o Operation) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

// WithoutCardNumbers is o without what g takes for a card number. D1 has no reason to send
// one in clear, and if it does, it is not to rest in a table or to be shown: of codes and
// texts the digits are masked, and an id is dropped, since none of ours can be one. D1's own,
// OperationID, stays, for orders are found by it, and so does Raw, which is sealed.
func (o Operation) WithoutCardNumbers(g order.PANGuard) Operation {
	d := &o.Details
	for _, s := range []*string{
		&o.Operation, &o.Status, &o.InputFileName, &o.ErrorCode, &d.Status, &d.Reason, &d.ProductionSite, &d.TrackingType,
		&d.Shipment.Carrier, &d.Shipment.TrackingNumber, &d.Shipment.Status, &d.Shipment.Message, &d.Shipment.TrackingURL,
	} {
		if g.Finds(*s, false) {
			*s = MaskDigits(*s)
		}
	}
	if g.Finds(o.CardID, false) {
		o.CardID = ""
	}
	if g.Finds(o.IssuerRequestID, false) {
		o.IssuerRequestID, o.NotByCard = "", true
	}
	return o
}

// MaskDigits keeps the words of a text and none of its digits.
func MaskDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return '•'
		}
		return r
	}, s)
}

var errNotObject = errors.New("d1client: operation is not a JSON object")

// ParseOperation reads one operation. It fails only when raw is not a JSON object,
// and is made for hostile input: its strings are valid UTF-8 without control
// characters, bounded in length, and fit for a database and a page.
func ParseOperation(raw []byte) (Operation, error) {
	if !json.Valid(raw) {
		return Operation{}, errNotObject
	}
	op, err := ParseElement(raw)
	op.Raw = bytes.Clone(raw)
	return op, err
}

// ParseElement is ParseOperation for a part of valid JSON; Raw is left out.
func ParseElement(raw []byte) (Operation, error) {
	var few, fewDetails, fewOfShipment [manyMembers]member
	m, ok := splitKnown(few[:0], raw)
	if !ok {
		return Operation{}, errNotObject
	}
	details := m.object(fewDetails[:0], "details")
	shipment := details.object(fewOfShipment[:0], "shipment")
	dueDate, dateOnly, zoneless := details.date("dueDate")
	requestID := firstNonEmpty(m.id("issuerRequestId"), details.id("issuerRequestId"))
	return Operation{
		NotByCard: m.has("inputFileName") || details.has("inputFileName") ||
			requestID == "" && (m.has("issuerRequestId") || details.has("issuerRequestId")),
		OperationID:     m.id("operationId"),
		Operation:       m.code("operation"),
		Status:          m.code("status"),
		StartTime:       m.time("startTime"),
		EndTime:         m.time("endTime"),
		CardID:          m.cardID("cardId"),
		IssuerRequestID: requestID,
		InputFileName:   firstNonEmpty(m.code("inputFileName"), details.code("inputFileName")),
		ErrorCode:       m.code("errorCode"),
		Details: Details{
			Status:          details.code("status"),
			Reason:          details.text("reason"),
			ProductionSite:  details.text("productionSite"),
			TrackingType:    details.code("trackingType"),
			DueDate:         dueDate,
			DueDateOnly:     dateOnly,
			DueDateZoneless: zoneless,
			Shipment: Shipment{
				Carrier:        shipment.code("carrier"),
				TrackingNumber: shipment.code("trackingNumber"),
				Status:         shipment.code("status"),
				Message:        shipment.text("message"),
				TrackingURL:    shipment.link("trackingUrl"),
			},
		},
	}, nil
}

const (
	maxCode = 128  // characters
	maxText = 1000 // characters
	maxLink = 2048 // bytes
)

// code is a value that is compared: half of it would be another one, so one that is
// too long is empty.
func (m members) code(name string) string {
	s := clean(m.str(name))
	if !IsCode(s) {
		return ""
	}
	return s
}

// IsCode tells whether s may be a code of D1 or of a carrier, as this client reads them.
func IsCode(s string) bool { return s != "" && s == clean(s) && len([]rune(s)) <= maxCode }

// text is a value that is read by people: one that is too long is cut.
func (m members) text(name string) string {
	s := clean(m.str(name))
	if r := []rune(s); len(r) > maxText {
		s = strings.TrimSpace(string(r[:maxText]))
	}
	return s
}

// link lets no other scheme through to the page that will show it.
func (m members) link(name string) string {
	s := m.str(name)
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > maxLink || s != clean(s) || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	return s
}

func (m members) cardID(name string) string {
	if s := m.str(name); isID(s, maxCardID) {
		return s
	}
	return ""
}

func (m members) time(name string) time.Time {
	t, _ := parseTime(m.str(name))
	return t.UTC()
}

func (m members) date(name string) (t time.Time, dateOnly, zoneless bool) {
	s := m.str(name)
	if t, err := time.Parse(time.DateOnly, s); err == nil && plausible(t) {
		return t, true, false
	}
	t, zoneless = parseTime(s)
	return t, false, zoneless
}

// timeLayouts are ISO 8601 as seen in the wild; seconds take a fraction in each.
// Without a zone it is UTC.
var timeLayouts = []string{
	"2006-01-02T15:04:05Z07:00",
	"2006-01-02T15:04:05Z0700",
	"2006-01-02T15:04:05Z07",
	"2006-01-02T15:04:05",
	"2006-01-02T15:04Z07:00",
	"2006-01-02T15:04",
}

// parseTime returns the zero time for what is none, and whether it names no zone.
func parseTime(s string) (t time.Time, zoneless bool) {
	if s == "" {
		return time.Time{}, false
	}
	for _, layout := range timeLayouts {
		// In UTC, so that the machine's own zone shows nowhere.
		if t, err := time.ParseInLocation(layout, s, time.UTC); err == nil && plausible(t) {
			return t, !strings.Contains(layout, "Z07")
		}
	}
	return time.Time{}, false
}

// plausible keeps out years that databases and JSON cannot hold.
func plausible(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1970 && year <= 9998
}

// clean drops what cannot be printed (NUL, controls, direction marks) and makes a
// plain space of every other.
func clean(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		default:
			return -1
		}
	}, s))
}

func firstNonEmpty(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
