package order

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
)

// Reorder is what an order may differ in from the one that it stands in for.
type Reorder struct {
	IssuerRequestID   string
	EncryptedData     string   // "" when the first order's is to serve again
	DeliveryAddress   *Address // nil when it goes where the first one went
	DuplicateOverride string
	Reason            string // why it is ordered again, for the timeline

	// SensitiveData is the clear card data of the request, if it came in clear: see
	// Request.
	SensitiveData []byte
}

// Format prints nothing of what is ordered.
func (r Reorder) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{request %q}", r.IssuerRequestID)
}

// LogValue logs what Format prints.
func (r Reorder) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(r)) }

// DecodeReorder reads what a reorder changes. It refers to text (SensitiveData), which
// the caller clears.
func DecodeReorder(text []byte, rules *Rules) (r Reorder, _ Faults) {
	const what = "a reorder"
	faults := decodeAction(text, rules, what, func(root *object) {
		r = Reorder{
			IssuerRequestID: root.text("issuerRequestId", issuerRequestID),
			EncryptedData:   root.text("encryptedData", encryptedData),
			DeliveryAddress: decodeAddress(root, "deliveryAddress"),
			Reason:          root.text("reason", actionReason),
		}
		r.DuplicateOverride = decodeOverride(root, what)
		if root.has("sensitiveData") {
			r.SensitiveData = root.d.cardData(root, false)
		}
	})
	return r, faults
}

// Original is an order that another one is to stand in for.
type Original struct {
	ID         string
	CardID     string
	Metadata   map[string]string
	Urgent     bool
	Production Production // with the JWE, if that may serve again
}

// Format prints the order's ids only.
func (o Original) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{order %s card %q}", o.ID, o.CardID)
}

// LogValue logs what Format prints.
func (o Original) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

// Again is the order that stands in for o, with what r changes. It has to meet today's
// rules as any other: the faults are those that Decode finds in it, with pointers into
// the reorder where that has the member.
func (r Reorder) Again(o Original, rules *Rules) (*Request, Faults) {
	p := o.Production
	p.IssuerRequestID = r.IssuerRequestID
	if r.EncryptedData != "" {
		p.EncryptedData = r.EncryptedData
	}
	if r.DeliveryAddress != nil {
		if p.Shipment == nil {
			return nil, Faults{{Pointer: "/deliveryAddress", Code: CodeNotAllowed, Detail: "the order has no shipment"}}
		}
		s := *p.Shipment
		// What is printed on the letter follows, if it was the same.
		if s.IndividualAddress != nil && s.DeliveryAddress != nil && *s.IndividualAddress == *s.DeliveryAddress {
			s.IndividualAddress = r.DeliveryAddress
		}
		s.DeliveryAddress = r.DeliveryAddress
		p.Shipment = &s
	}
	text, err := json.Marshal(struct {
		Production
		IssuerRequestID   string            `json:"issuerRequestId,omitempty"`
		CardID            string            `json:"cardId"`
		Metadata          map[string]string `json:"metadata,omitempty"`
		Urgent            bool              `json:"urgent,omitempty"`
		ReplacesOrderID   string            `json:"replacesOrderId"`
		DuplicateOverride *overrideText     `json:"duplicateOverride,omitempty"`
	}{p, p.IssuerRequestID, o.CardID, o.Metadata, o.Urgent, o.ID, overrideOf(r.DuplicateOverride)})
	if err != nil {
		return nil, Faults{{Code: CodeInvalidValue, Detail: "the order cannot be written again"}}
	}
	request, faults := Decode(text, rules)
	if r.DeliveryAddress != nil {
		for i, f := range faults {
			if rest, ok := strings.CutPrefix(f.Pointer, "/shipment/deliveryAddress"); ok {
				faults[i].Pointer = "/deliveryAddress" + rest
			}
		}
	}
	return request, faults
}

type overrideText struct {
	Reason string `json:"reason"`
}

func overrideOf(reason string) *overrideText {
	if reason == "" {
		return nil
	}
	return &overrideText{reason}
}
