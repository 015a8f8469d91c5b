package api

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/order"
)

// programsView is what may be ordered. Not configured means: all that D1 takes.
type programsView struct {
	Configured bool          `json:"configured"`
	Digest     string        `json:"digest,omitempty"`
	Data       []ProgramView `json:"data"`
}

// ProgramView is a program as JSON. A list that is absent restricts nothing; an
// empty one allows nothing.
type ProgramView struct {
	CardProductID              string                 `json:"cardProductId"`
	DistributionChannels       []order.Channel        `json:"distributionChannels,omitzero"`
	DestinationCountries       []string               `json:"destinationCountries,omitzero"`
	DeliveryMethods            []string               `json:"deliveryMethods,omitzero"`
	CardCarriers               []string               `json:"cardCarriers,omitzero"`
	Packagings                 []string               `json:"packagings,omitzero"`
	Inserts                    []string               `json:"inserts,omitzero"`
	PaymentApplications        []profileView          `json:"paymentApplications,omitzero"`
	AlphaCard                  bool                   `json:"alphaCard"`
	NameCharacters             string                 `json:"nameCharacters"`
	NameLength                 int                    `json:"nameLength"`
	EndsAt                     order.Status           `json:"endsAt,omitempty"`
	DuplicateWindowSeconds     int64                  `json:"duplicateWindowSeconds"`
	SLA                        *slaView               `json:"sla,omitempty"`
	StageBudgetSeconds         map[order.Status]int64 `json:"stageBudgetSeconds,omitempty"`
	SilentAfterSeconds         int64                  `json:"silentAfterSeconds"`
	DispatchDelaySeconds       int64                  `json:"dispatchDelaySeconds"`
	MaxOrdersPerConsumerPerDay int                    `json:"maxOrdersPerConsumerPerDay,omitempty"`
}

type profileView struct {
	Config               string   `json:"config"`
	ODAKeyIndexes        []string `json:"odaKeyIndexes,omitzero"`
	DerivationKeyIndexes []string `json:"derivationKeyIndexes,omitzero"`
	CVKeyIndexes         []string `json:"cvKeyIndexes,omitzero"`
	PVKeyIndexes         []string `json:"pvKeyIndexes,omitzero"`
}

type slaView struct {
	WorkingDays map[order.Issuance]int `json:"workingDays"`
	CutOff      string                 `json:"cutOff,omitempty"`
	TimeZone    string                 `json:"timeZone,omitempty"`
	ReadyBy     string                 `json:"readyBy,omitempty"`
	Weekend     []string               `json:"weekend"`
	Holidays    []string               `json:"holidays"`
	Urgent      *urgentView            `json:"urgent,omitempty"`
}

type urgentView struct {
	WithinSeconds int64  `json:"withinSeconds"`
	CutOff        string `json:"cutOff,omitempty"`
}

// listPrograms tells what may be ordered now.
func (s *server) listPrograms(w http.ResponseWriter, r *http.Request) error {
	rules := s.Rules(chi.URLParam(r, "issuerId"))
	view := programsView{Configured: rules.Programs != nil, Data: ViewPrograms(rules.Programs)}
	if view.Configured {
		view.Digest = rules.ProgramsDigest
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// ViewPrograms shows programs, sorted by card product.
func ViewPrograms(programs map[string]*order.Program) []ProgramView {
	views := make([]ProgramView, 0, len(programs))
	for _, p := range programs {
		views = append(views, viewProgram(p))
	}
	slices.SortFunc(views, func(a, b ProgramView) int { return cmp.Compare(a.CardProductID, b.CardProductID) })
	return views
}

func viewProgram(p *order.Program) ProgramView {
	v := ProgramView{
		CardProductID: p.CardProductID, DistributionChannels: p.DistributionChannels,
		DestinationCountries: p.DestinationCountries, DeliveryMethods: p.DeliveryMethods,
		CardCarriers: p.CardCarriers, Packagings: p.Packagings, Inserts: p.Inserts,
		AlphaCard: p.AlphaCard, NameCharacters: p.Names.Characters(), NameLength: p.Names.Limit(),
		EndsAt: p.EndsAt, DuplicateWindowSeconds: seconds(p.DuplicateWindow),
		SilentAfterSeconds: seconds(p.SilentAfter), DispatchDelaySeconds: seconds(p.DispatchDelay),
		MaxOrdersPerConsumerPerDay: p.MaxOrdersPerConsumerPerDay,
	}
	for status, budget := range p.StageBudgets {
		if v.StageBudgetSeconds == nil {
			v.StageBudgetSeconds = make(map[order.Status]int64)
		}
		v.StageBudgetSeconds[status] = seconds(budget)
	}
	if p.PaymentApplications != nil {
		v.PaymentApplications = make([]profileView, len(p.PaymentApplications))
	}
	for i, profile := range p.PaymentApplications {
		v.PaymentApplications[i] = profileView(profile)
	}
	if p.SLA.WorkingDays != nil {
		v.SLA = viewSLA(p.SLA)
	}
	return v
}

func viewSLA(sla order.SLA) *slaView {
	v := &slaView{
		WorkingDays: sla.WorkingDays, CutOff: sla.CutOff, TimeZone: sla.TimeZone, ReadyBy: sla.ReadyBy,
		Weekend: []string{}, Holidays: append([]string{}, sla.Holidays...),
	}
	for _, day := range sla.WeekendDays() {
		v.Weekend = append(v.Weekend, strings.ToUpper(day.String()))
	}
	if sla.Urgent.Within > 0 {
		v.Urgent = &urgentView{seconds(sla.Urgent.Within), sla.Urgent.CutOff}
	}
	return v
}

func seconds(d time.Duration) int64 { return int64(d.Seconds()) }
