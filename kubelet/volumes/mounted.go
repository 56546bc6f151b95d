// Package volumes makes the volumes of pods ready on the node.
package volumes

// Mounted is one volume of a pod, ready to be given to the runtime.
type Mounted struct {
	// HostPath is the directory or file on the node that holds the volume. For a
	// block volume it is the device.
	HostPath string
	// Block says that HostPath is a device for volumeDevices, not a file system.
	Block bool
	// ReadOnly forces every mount of the volume to be read-only, whatever the
	// container asks (a persistent volume claim marked readOnly, for instance).
	ReadOnly bool
}

// Set is every volume of one pod, by volume name. Image volumes are missing from it:
// the runtime mounts those itself.
type Set map[string]Mounted
