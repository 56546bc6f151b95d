package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/deploy/config"
	"github.com/keelson/keelson/deploy/pki"
	"github.com/keelson/keelson/deploy/supervisor"
)

// Status prints how the machine's part of the cluster is. healthy is false when a
// service is not running, the API does not answer, or the node is not Ready.
func (m *Machine) Status(ctx context.Context, w io.Writer) (healthy bool, err error) {
	if os.Geteuid() != 0 {
		return false, ErrNotRoot
	}
	s, known, err := config.Load(m.Paths)
	if err != nil {
		return false, err
	}
	if !known {
		fmt.Fprintln(w, "There is no cluster on this machine: `keelson up` makes one.")
		return false, nil
	}
	roles := []string{}
	if s.ControlPlane {
		roles = append(roles, "control plane")
	}
	if s.Worker {
		roles = append(roles, "worker")
	}
	fmt.Fprintf(w, "%s (%s): %s of %s\n\n", s.Node, s.Address, strings.Join(roles, " and "), s.Server)
	healthy = true
	r := m.runner()
	list, err := r.Status(ctx)
	switch {
	case errors.Is(err, supervisor.ErrNotRunning):
		fmt.Fprintln(w, "Nothing is running: `keelson up` starts it.")
		return false, nil
	case err != nil:
		return false, err
	}
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintf(t, "SERVICE\tSTATE\tPID\tFOR\tRESTARTS\tMEMORY\tLOG\n")
	for _, st := range list {
		if st.Phase != supervisor.Ready {
			healthy = false
		}
		pid, mem, since := "-", "-", "-"
		if st.PID != 0 {
			pid, mem = fmt.Sprint(st.PID), fmt.Sprintf("%d MiB", RSS(st.PID)>>20)
		}
		if !st.Since.IsZero() {
			since = time.Since(st.Since).Round(time.Second).String()
		}
		state := string(st.Phase)
		if len(st.Waits) > 0 {
			state += " for " + strings.Join(st.Waits, ", ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", st.Name, state, pid, since, st.Restarts, mem, st.LogFile)
		if st.Last != "" {
			fmt.Fprintf(t, "\tlast ended: %s\n", st.Last)
		}
	}
	t.Flush()
	if s.ControlPlane {
		healthy = m.clusterStatus(ctx, w) && healthy
	}
	soonest, name := time.Time{}, ""
	for _, c := range m.wants(s) {
		if end, err := pki.NotAfter(m.Paths.Cert(c.Name)); err == nil && (soonest.IsZero() || end.Before(soonest)) {
			soonest, name = end, c.Name
		}
	}
	if name != "" {
		fmt.Fprintf(w, "\nCertificates: the first to end is %s, on %s (up renews)\n", name, soonest.Format(time.DateOnly))
	}
	return healthy, nil
}

func (m *Machine) clusterStatus(ctx context.Context, w io.Writer) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client(m.Paths.AdminKubeconfig())
	if err != nil {
		fmt.Fprintf(w, "\nAPI: %v\n", err)
		return false
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(w, "\nAPI: %v\n", err)
		return false
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		fmt.Fprintf(w, "\nAPI: %v\n", err)
		return false
	}
	ready := true
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 2, 8, 2, ' ', 0)
	fmt.Fprintf(t, "NODE\tREADY\tADDRESS\tPODS\n")
	for _, n := range nodes.Items {
		state, address, count := "Unknown", "-", 0
		for _, cond := range n.Status.Conditions {
			if cond.Type == "Ready" {
				state = string(cond.Status)
			}
		}
		for _, a := range n.Status.Addresses {
			if a.Type == "InternalIP" && address == "-" {
				address = a.Address
			}
		}
		for _, p := range pods.Items {
			if p.Spec.NodeName == n.Name {
				count++
			}
		}
		ready = ready && state == "True"
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", n.Name, state, address, count)
	}
	t.Flush()
	return ready
}

// RSS is a process's resident memory in bytes, 0 when it is gone (proc(5), statm).
func RSS(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}
